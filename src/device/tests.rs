//! Every op on a device against its definition, in value and in gradient.

#[path = "../../tests/common/device.rs"]
mod device;

use crate::DType;
use crate::gradcheck::Gen;
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
fn a_failure_unwinds_to_an_error() {
    let Some(gpu) = gpu() else { return };
    let error = super::caught(|| {
        let _ = gpu.memory(1 << 50);
        Ok(())
    });
    assert!(error.unwrap_err().to_string().contains("smaller batches"));
}
