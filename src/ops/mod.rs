//! The ops, one file per family: shape rule, CPU arm, derivative and checks together.

pub mod attention;
pub mod batch_norm;
pub mod binary;
pub mod conv;
pub mod gather;
pub mod index;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod pool;
mod product;
pub mod reduce;
pub mod resize;
pub mod shape;
pub mod softmax;
pub mod topk;
pub mod unary;

use crate::gradcheck::{Case, Gen};
use crate::op::Op;

/// One line of the table of ops.
pub struct Entry {
    /// The op's name in the table.
    pub name: &'static str,
    /// Draws an instance with inputs.
    pub cases: fn(&mut Gen) -> Case,
}

const fn entry<O: Op>(name: &'static str) -> Entry {
    Entry { name, cases: O::cases }
}

/// Every op. Tests, fuzzing and the self-test read this table; a test compares it with the sources.
pub const REGISTRY: &[Entry] = &[
    entry::<unary::Map>("map"),
    entry::<unary::Affine>("affine"),
    entry::<unary::Clamp>("clamp"),
    entry::<unary::PowScalar>("pow_scalar"),
    entry::<unary::Cast>("cast"),
    entry::<binary::Zip>("zip"),
    entry::<binary::Compare>("compare"),
    entry::<binary::Where>("where"),
    entry::<reduce::Sum>("sum"),
    entry::<reduce::Extreme>("max"),
    entry::<reduce::Argmax>("argmax"),
    entry::<reduce::LogSumExp>("logsumexp"),
    entry::<reduce::Var>("var"),
    entry::<shape::Reshape>("reshape"),
    entry::<shape::Permute>("permute"),
    entry::<shape::Narrow>("narrow"),
    entry::<shape::Step>("step"),
    entry::<shape::Flip>("flip"),
    entry::<shape::BroadcastTo>("broadcast_to"),
    entry::<shape::Concat>("concat"),
    entry::<shape::Pad>("pad"),
    entry::<matmul::Matmul>("matmul"),
    entry::<matmul::Linear>("linear"),
    entry::<softmax::Softmax>("softmax"),
    entry::<softmax::MaskedSoftmax>("masked_softmax"),
    entry::<softmax::LogSoftmax>("log_softmax"),
    entry::<norm::LayerNorm>("layer_norm"),
    entry::<norm::L2Normalise>("l2_normalise"),
    entry::<batch_norm::BatchNorm>("batch_norm"),
    entry::<conv::Conv2d>("conv2d"),
    entry::<pool::MaxPool2d>("max_pool2d"),
    entry::<pool::AvgPool2d>("avg_pool2d"),
    entry::<pool::AdaptiveAvgPool2d>("adaptive_avg_pool2d"),
    entry::<resize::Resize>("resize"),
    entry::<index::Embedding>("embedding"),
    entry::<index::Dropout>("dropout"),
    entry::<gather::Gather>("gather"),
    entry::<gather::IndexSelect>("index_select"),
    entry::<gather::ScatterAdd>("scatter_add"),
    entry::<topk::TopK>("topk"),
    entry::<attention::Attention>("attention"),
    entry::<loss::CrossEntropy>("cross_entropy"),
    entry::<loss::BceWithLogits>("bce_with_logits"),
    entry::<loss::Contrastive>("contrastive"),
    entry::<loss::Tier>("tier"),
];

/// One test per op of a file: `check_ops!(Exp, Log);`. Each draws cases from seeds and sizes by proptest and runs every
/// check of [`Case::check`]: value, gradient by finite differences in f64, f32 against f64, fused against composed; and the f32 path on
/// every tier that the machine has, with sizes beyond a vector's.
#[macro_export]
macro_rules! check_ops {
    ($($op:ident),+ $(,)?) => {
        #[cfg(test)]
        #[allow(non_snake_case)]
        mod checks {
            $(#[test] fn $op() { $crate::ops::check_cases(<super::$op as $crate::op::Op>::cases); })+
        }
    };
}

/// Draws and checks 96 cases (or as many as `PROPTEST_CASES` says), shrinking a failing one to a small size; and a sixth as many of larger
/// sizes on every tier.
#[cfg(test)]
pub(crate) fn check_cases(cases: fn(&mut Gen) -> Case) {
    use kernels_cpu::{Isa, par::Pool};
    use proptest::test_runner::{Config, TestRunner};
    let number = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(96);
    let draw = |number, sizes: std::ops::Range<usize>, check: &dyn Fn(&mut Gen, &Case)| {
        let config = Config { cases: number, failure_persistence: None, ..Config::default() };
        let run = TestRunner::new(config).run(&(proptest::num::u64::ANY, sizes), |(seed, size)| {
            let mut g = Gen::new(seed, size);
            let case = cases(&mut g);
            check(&mut g, &case);
            Ok(())
        });
        if let Err(failure) = run {
            panic!("{failure}");
        }
    };
    draw(number, 1..8, &|g, case| case.check(&mut g.rng));
    for isa in Isa::available() {
        let pool = Pool::on(isa, 2);
        draw(number.div_ceil(6), 2..24, &|g, case| pool.install(|| case.check_single(&mut g.rng)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An op that is not in the table would escape the checks; so would one without its line in its own file.
    #[test]
    fn the_table_names_every_op_and_every_file_checks_its_own() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
        let table = std::fs::read_to_string(folder.join("mod.rs")).unwrap();
        let mut ops = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let source = std::fs::read_to_string(&path).unwrap();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let checked =
                source.split("check_ops!(").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
            for name in source.lines().filter_map(|line| line.strip_prefix("impl Op for ")?.split_whitespace().next()) {
                ops += 1;
                assert!(table.contains(&format!("entry::<{stem}::{name}>")), "{name} is not in the table");
                assert!(checked.split(',').any(|c| c.trim() == name), "{name} has no check in {}", path.display());
            }
        }
        assert_eq!(ops, REGISTRY.len());
    }
}
