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
pub mod tier;
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
    entry::<tier::Tier>("tier"),
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
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use kernels_cpu::map::Unary;
    use kernels_cpu::zip::{Binary, Compare};

    use super::*;
    use crate::dtype::DType;
    use crate::op::Meta;

    fn f(dims: &[usize]) -> Meta {
        Meta::new(dims, DType::F32)
    }

    fn double(dims: &[usize]) -> Meta {
        Meta::new(dims, DType::F64)
    }

    fn ids(dims: &[usize]) -> Meta {
        Meta::new(dims, DType::I64)
    }

    fn mask(dims: &[usize]) -> Meta {
        Meta::new(dims, DType::U8)
    }

    /// Each condition of each shape rule, broken alone.
    #[test]
    fn an_op_refuses_what_does_not_fit_in_words_of_its_own() {
        let refuses = |op: &dyn Op, words: &str, inputs: &[&[Meta]]| {
            for x in inputs {
                let Err(panic) = catch_unwind(AssertUnwindSafe(|| op.shape(x))) else {
                    panic!("{} takes {x:?}", op.name());
                };
                let said =
                    panic.downcast::<String>().map_or_else(|p| (*p.downcast::<&str>().unwrap()).to_owned(), |s| *s);
                assert!(said.contains(words), "{said:?} does not say {words:?}");
            }
        };
        for op in [&binary::Zip(Binary::Mul) as &dyn Op, &binary::Compare(Compare::Lt)] {
            let says = |what: &str| format!("{}: {what}", op.name());
            refuses(op, &says("element types differ, dims [3] and [1]"), &[&[f(&[3]), double(&[1])]]);
            refuses(op, &says("dims [2, 3] and [4] do not broadcast"), &[&[f(&[2, 3]), f(&[4])]]);
        }
        refuses(&binary::Where, "where: the mask", &[&[f(&[1]), f(&[3]), f(&[3])]]);
        refuses(&binary::Where, "where: dims [2, 3] and [4]", &[&[mask(&[1]), f(&[2, 3]), f(&[4])]]);
        refuses(&binary::Where, "where: a mask of [5] for [2, 3]", &[&[mask(&[5]), f(&[2, 3]), f(&[3])]]);
        refuses(&unary::Clamp { low: 1.0, high: 0.5 }, "clamp: bounds 1..0.5", &[&[f(&[3])]]);
        refuses(&reduce::Extreme { dim: 1, largest: true }, "max: dimension 1 of [2, 0] is empty", &[&[f(&[2, 0])]]);
        refuses(&reduce::Argmax(0), "argmax: dimension 0 of [0, 2] is empty", &[&[f(&[0, 2])]]);
        refuses(&reduce::Var { correction: 1 }, "var: 1 elements with correction 1", &[&[f(&[2, 1])]]);
        refuses(&reduce::Var { correction: 0 }, "var: 0 elements with correction 0", &[&[f(&[])], &[f(&[2, 0])]]);

        refuses(&shape::Reshape([5].into()), "reshape: [2, 3] to [5]", &[&[f(&[2, 3])]]);
        refuses(&shape::Flip(2), "flip: no dimension 2 in [2, 3]", &[&[f(&[2, 3])]]);
        refuses(&shape::Pad { dim: 2, before: 1, after: 1 }, "pad: no dimension 2 in [2, 3]", &[&[f(&[2, 3])]]);
        let beside: [&[Meta]; 3] = [&[f(&[2, 3]), double(&[2, 3])], &[f(&[2, 3]), f(&[2])], &[f(&[2, 3]), f(&[2, 4])]];
        refuses(&shape::Concat(0), "concat along 0", &beside);
        refuses(&shape::Concat(2), "concat along 2", &[&[f(&[2, 3]), f(&[2, 3])]]);
        refuses(&shape::Concat(0), "concat: no tensors", &[&[]]);

        refuses(
            &matmul::Matmul,
            "matmul: Meta",
            &[
                &[f(&[2, 3]), double(&[3, 4])],
                &[f(&[3]), f(&[3, 4])],
                &[f(&[2, 3]), f(&[3])],
                &[f(&[2, 3]), f(&[4, 3])],
                &[f(&[2, 3]), f(&[2, 4])],
            ],
        );
        refuses(&matmul::Matmul, "batches of [2, 2, 3] and [5, 3, 4]", &[&[f(&[2, 2, 3]), f(&[5, 3, 4])]]);
        refuses(
            &matmul::Linear { act: Some(Unary::Gelu) },
            "linear: [Meta",
            &[
                &[f(&[]), f(&[2, 3])],
                &[f(&[4, 3]), f(&[3])],
                &[f(&[4, 3]), f(&[3, 2])],
                &[f(&[4, 3]), double(&[2, 3])],
                &[f(&[4, 3]), f(&[2, 3]), f(&[3])],
                &[f(&[4, 3]), f(&[2, 3]), f(&[2, 1])],
                &[f(&[4, 3]), f(&[2, 3]), double(&[2])],
            ],
        );

        refuses(&softmax::Softmax, "softmax of a scalar", &[&[f(&[])]]);
        refuses(&softmax::LogSoftmax, "log_softmax of a scalar", &[&[f(&[])]]);
        refuses(
            &softmax::MaskedSoftmax,
            "masked_softmax: Meta",
            &[
                &[f(&[6, 4]), f(&[3, 4])],
                &[f(&[4]), mask(&[1, 4])],
                &[f(&[6, 4]), mask(&[4])],
                &[f(&[6, 4]), mask(&[3, 5])],
                &[f(&[6, 4]), mask(&[4, 4])],
                &[f(&[6, 4]), mask(&[0, 4])],
            ],
        );
        refuses(&norm::L2Normalise, "l2_normalise: Meta", &[&[f(&[])], &[f(&[2, 0])]]);
        refuses(
            &norm::LayerNorm { eps: 0.1 },
            "layer_norm: [Meta",
            &[
                &[f(&[]), f(&[]), f(&[])],
                &[f(&[2, 0]), f(&[0]), f(&[0])],
                &[f(&[2, 3]), f(&[2]), f(&[3])],
                &[f(&[2, 3]), f(&[3]), double(&[3])],
                &[f(&[2, 3]), f(&[3])],
            ],
        );
        let [x, c] = [f(&[2, 3]), f(&[3])];
        refuses(
            &batch_norm::BatchNorm { eps: 0.1, relu: false },
            "batch_norm: [Meta",
            &[&[f(&[]), c, c], &[x, c], &[x, c, c, c], &[x, c, c, x], &[x, f(&[2]), c], &[x, c, double(&[3])]],
        );
        refuses(
            &batch_norm::BatchNorm { eps: 0.1, relu: true },
            "batch_norm: [Meta",
            &[&[x, c], &[x, c, c, c], &[x, c, c, f(&[1, 3])], &[x, c, c, double(&[2, 3])], &[x, c, c, c, c]],
        );
        refuses(&batch_norm::BatchNorm { eps: 0.1, relu: false }, "needs more than one value", &[&[f(&[1, 3]), c, c]]);

        let [map, weight] = [f(&[1, 5, 6, 4]), f(&[6, 2, 3, 3])];
        let conv = conv::Conv2d { groups: 2, ..Default::default() };
        refuses(
            &conv,
            "conv2d: [Meta",
            &[
                &[f(&[5, 6, 4]), weight],
                &[map, f(&[6, 2, 9])],
                &[map, f(&[6, 4, 3, 3])],
                &[map, weight, f(&[4])],
                &[map, weight, double(&[6])],
            ],
        );
        let window = |padding| pool::Window { kernel: [3, 3], stride: [1, 1], padding, dilation: [1, 1] };
        let mean = |padding| pool::AvgPool2d { kernel: [3, 3], stride: [1, 1], padding, count_include_pad: true };
        refuses(&pool::MaxPool2d(window([0, 0])), "max_pool2d: needs [n, h, w, c]", &[&[f(&[5, 6, 4])]]);
        refuses(&pool::MaxPool2d(window([1, 1])), "does not fit", &[&[f(&[1, 0, 6, 4])]]);
        refuses(&mean([0, 0]), "avg_pool2d: needs [n, h, w, c]", &[&[f(&[5, 6, 4])]]);
        refuses(&mean([1, 1]), "does not fit", &[&[f(&[1, 5, 0, 4])]]);
        // A window may be half padding.
        for padding in [[2, 1], [1, 2]] {
            refuses(&pool::MaxPool2d(window(padding)), "max_pool2d: Window", &[&[map]]);
            refuses(&mean(padding), "avg_pool2d: AvgPool2d", &[&[map]]);
        }
        let empty: [&[Meta]; 2] = [&[f(&[1, 0, 6, 4])], &[f(&[1, 5, 0, 4])]];
        refuses(&pool::AdaptiveAvgPool2d([2, 2]), "adaptive_avg_pool2d: Meta", &empty);

        refuses(&index::Embedding, "embedding: a table", &[&[f(&[3]), ids(&[2])], &[f(&[3, 2]), mask(&[2])]]);
        refuses(&index::Embedding, "embedding: a table of i64", &[&[ids(&[3, 2]), ids(&[2])]]);
        refuses(&index::Dropout { p: 1.0, key: 0 }, "dropout: probability 1", &[&[f(&[3])]]);
        refuses(&topk::TopK { k: 4, dim: 1, largest: true }, "topk: 4 along dimension 1 of [2, 3]", &[&[f(&[2, 3])]]);
        let x = f(&[2, 3]);
        refuses(&gather::Gather(1), "gather along 1", &[&[x, mask(&[2, 5])], &[x, ids(&[2])], &[x, ids(&[1, 5])]]);
        refuses(&gather::Gather(2), "gather along 2", &[&[x, ids(&[2, 3])]]);
        refuses(&gather::IndexSelect(1), "index_select along 1", &[&[x, mask(&[5])], &[x, ids(&[5, 1])]]);
        refuses(&gather::IndexSelect(2), "index_select along 2", &[&[x, ids(&[5])]]);
        refuses(&gather::IndexSelect(1), "5 places of the empty", &[&[f(&[2, 0]), ids(&[5])]]);
        refuses(
            &gather::ScatterAdd(1),
            "scatter_add along 1",
            &[
                &[x, mask(&[2, 5]), f(&[2, 5])],
                &[x, ids(&[2, 5]), f(&[2, 4])],
                &[x, ids(&[2, 5]), double(&[2, 5])],
                &[x, ids(&[1, 5]), f(&[1, 5])],
            ],
        );

        let [q, k] = [f(&[2, 3, 4, 5]), f(&[2, 3, 6, 5])];
        let attention = attention::Attention { causal: false, dropout: None };
        refuses(
            &attention,
            "attention: q Meta",
            &[
                &[f(&[2, 3, 4]), k, k],
                &[q, f(&[2, 3, 6]), f(&[2, 3, 6])],
                &[q, k, f(&[2, 3, 7, 5])],
                &[f(&[2, 1, 4, 5]), k, k],
                &[f(&[2, 3, 4, 6]), k, k],
                &[q, k, double(&[2, 3, 6, 5])],
            ],
        );
        refuses(&attention, "attention: key mask", &[&[q, k, k, f(&[2, 6])], &[q, k, k, mask(&[2, 4])]]);

        let square = f(&[3, 3]);
        refuses(
            &loss::CrossEntropy { ignore: -1 },
            "cross_entropy: Meta",
            &[&[f(&[4, 3, 1]), ids(&[4])], &[f(&[4, 3]), mask(&[4])], &[f(&[4, 3]), ids(&[3])]],
        );
        refuses(
            &loss::BceWithLogits,
            "bce_with_logits: [Meta",
            &[
                &[x, double(&[2, 3]), mask(&[2, 3])],
                &[x, f(&[3]), mask(&[2, 3])],
                &[x, x, mask(&[3])],
                &[x, x, ids(&[2, 3])],
            ],
        );
        refuses(
            &loss::Contrastive,
            "contrastive: logits",
            &[&[f(&[3, 3, 1]), ids(&[3])], &[f(&[3, 4]), ids(&[3])], &[square, ids(&[4])], &[square, mask(&[3])]],
        );
        let similar = f(&[2, 3, 4]);
        refuses(
            &tier::Tier { eps: 1e-7, temperature: 1.0 },
            "tier: similarities",
            &[&[f(&[2, 3]), mask(&[2, 3])], &[similar, ids(&[2, 3])], &[similar, mask(&[2, 4])]],
        );
    }

    #[test]
    fn attention_counts_both_of_its_products_and_a_convolution_its_groups() {
        let flops = |op: &dyn Op, x: &[Meta]| op.flops(x, op.shape(x));
        let keys = f(&[2, 3, 6, 5]);
        let attention = attention::Attention { causal: false, dropout: None };
        assert_eq!(flops(&attention, &[f(&[2, 3, 4, 5]), keys, keys]), 2 * 2 * (2 * 3) * 4 * 6 * 5);
        let conv = conv::Conv2d { groups: 2, ..Default::default() };
        assert_eq!(flops(&conv, &[f(&[2, 5, 6, 4]), f(&[6, 2, 3, 3])]), 2 * (2 * 3 * 4 * 6) * (2 * 3 * 3));
    }

    /// An op that is not in the table would escape the checks; so would one without its line in its own file.
    #[test]
    fn the_table_names_every_op_and_every_file_checks_its_own() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
        let table = std::fs::read_to_string(folder.join("mod.rs")).unwrap();
        let mut ops = 0;
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        // Folders have tests.
        for path in paths.filter(|path| path.is_file()) {
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
