//! Every op on a device against its definition, in value and in gradient.

#[path = "../../tests/common/device.rs"]
mod device;

use super::Gpu;
use crate::DType;
use crate::gradcheck::{Gen, ON_DEVICE};
use crate::ops::REGISTRY;
use crate::plan::Plan;
use crate::tensor::Tensor;
use device::gpu;

/// Ops that run on a device, forward and backward, in everything that their cases draw.
const ARMED: &[&str] = &[
    "map",
    "affine",
    "clamp",
    "reshape",
    "permute",
    "narrow",
    "step",
    "flip",
    "broadcast_to",
    "concat",
    "pad",
    "linear",
    "matmul",
    "sum",
    "max",
    "logsumexp",
    "var",
    "attention",
    "batch_norm",
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "resize",
    "cross_entropy",
    "bce_with_logits",
    "contrastive",
    "tier",
    "scatter_add",
    "dropout",
    "softmax",
    "masked_softmax",
    "log_softmax",
    "layer_norm",
    "l2_normalise",
    "embedding",
    "gather",
    "index_select",
];

#[test]
fn every_op_is_its_definition_and_what_has_an_arm_runs_there() {
    let Some(gpu) = gpu() else { return };
    for entry in REGISTRY {
        let mut fallen = 0;
        for seed in 0..40 {
            let mut g = Gen::new(seed, 1 + seed as usize % 12);
            let case = (entry.cases)(&mut g);
            let count = || gpu.fallbacks().iter().map(|(_, n)| n).sum::<u64>();
            let before = count();
            case.check_on(&gpu, &mut g.rng);
            fallen += count() - before;
        }
        eprintln!("{}: {fallen} times on the CPU", entry.name);
        assert!(fallen == 0 || !ARMED.contains(&entry.name), "{} runs on the CPU", entry.name);
    }
    assert_eq!(kernels_gpu::validation_messages(), 0);
}

/// What weak devices lack, each for itself; of what is bound at once so little that many an op runs on the CPU.
#[test]
fn every_op_is_its_definition_on_weak_devices() {
    let Some(gpu) = gpu() else { return };
    for limits in ["staging", "threads=64", "range=2048", "shared=16384,no-f16,no-subgroups"] {
        let weak = Gpu::weakened(&gpu.name()["vulkan:".len()..], limits).map_err(|(_, error)| error).unwrap();
        for entry in REGISTRY {
            for seed in 40..46 {
                let mut g = Gen::new(seed, 1 + 2 * seed as usize % 12);
                let case = (entry.cases)(&mut g);
                case.check_on(&weak, &mut g.rng);
            }
        }
        let fallen = weak.fallbacks();
        eprintln!("{limits}: {} ops at times on the CPU", fallen.len());
        let fell = fallen.iter().any(|(name, _)| ARMED.contains(&name.trim_end_matches(" backward")));
        assert!(!fell || limits.starts_with("range"), "{limits}: {fallen:?}");
    }
    assert_eq!(kernels_gpu::validation_messages(), 0);
}

/// Of numbers that half types hold, so that products in half have no other terms either.
#[test]
fn weights_in_half_stay_so_there_and_their_products_have_sums_of_f32() {
    let Some(gpu) = gpu() else { return };
    for (name, weight) in [("linear", 1), ("embedding", 0)] {
        let entry = REGISTRY.iter().find(|entry| entry.name == name).unwrap();
        for (seed, dtype) in (0..20).flat_map(|seed| [(seed, DType::BF16), (seed, DType::F16)]) {
            let case = (entry.cases)(&mut Gen::new(seed, 1 + seed as usize % 12));
            let float = |x: &Tensor, to| if x.dtype().is_float() { x.to_dtype(to) } else { x.detach() };
            let half: Vec<Tensor> = case.inputs().iter().map(|x| float(x, dtype)).collect();
            let exact: Vec<Tensor> = half.iter().map(|x| float(x, DType::F64)).collect();
            let there = |(i, x)| float(x, if i == weight { dtype } else { DType::F32 }).to_device(&gpu);
            let there: Vec<Tensor> = half.iter().enumerate().map(there).collect();
            assert!(there[weight].dtype() == dtype && there[weight].device().is_some());
            let (ours, expected) = (case.run(&there), case.run(&exact));
            let off = crate::gradcheck::deviation(&ours, &expected);
            assert!(ours.device().is_some() && off < ON_DEVICE.most, "{name} of {dtype}, {seed}: {off:e}");
        }
    }
    assert_eq!(gpu.fallbacks(), []);
    assert_eq!(kernels_gpu::validation_messages(), 0);
}

#[test]
fn a_plan_and_a_step_in_place_work_there() {
    let Some(gpu) = gpu() else { return };
    let mut rng = crate::rng::Rng::new(3, 0);
    let mut drawn = |dims: &[usize]| Tensor::randn(dims, DType::F32, &mut rng);
    let (w, x, y) = (drawn(&[5, 7]), drawn(&[3, 7]), drawn(&[3, 7]));
    let f = |w: &Tensor, x: &[Tensor]| vec![(&x[0].linear(w, None, None) + &w.sum(&[1], false)).relu()];
    let there = w.to_device(&gpu);
    let (plan, first) = Plan::new(std::slice::from_ref(&x), |x| f(&there, x));
    for (got, x) in [(first, &x), (plan.run(std::slice::from_ref(&y)), &y)] {
        let expected = f(&w, std::slice::from_ref(x));
        assert!(got[0].device().is_some() && crate::gradcheck::deviation(&got[0], &expected[0]) < 1e-6);
    }
    assert!(gpu.fallbacks().is_empty(), "{:?}", gpu.fallbacks());
    // Written here, it is read there.
    let mut p = there.trainable();
    let before = p.to_vec::<f32>();
    p.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|p| *p += 1.0);
    assert!(p.device().is_some());
    let after = p.affine(1.0, 0.0).to_vec::<f32>();
    assert!(before.iter().zip(&after).all(|(b, a)| b + 1.0 == *a));
    assert_eq!(there.to_vec::<f32>(), before);
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let Some(gpu) = gpu() else { return };
    let small = Gpu::weakened(&gpu.name()["vulkan:".len()..], "memory=1048576").map_err(|(_, error)| error).unwrap();
    small.fits(1 << 20, "this", "").unwrap();
    let error = small.fits(3 << 20, "this run", "Take less").unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "this run would take at least 3 MiB on {}, which has 1 MiB. Take less. The CPU has its own memory (--device cpu)",
            gpu.name()
        )
    );
}

#[test]
fn a_failure_unwinds_to_an_error() {
    let Some(gpu) = gpu() else { return };
    let error = super::caught(|| {
        let _ = gpu.memory(1 << 50);
        Ok(())
    });
    assert!(error.unwrap_err().to_string().contains("smaller batches"));
}
