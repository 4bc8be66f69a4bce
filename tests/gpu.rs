//! A model on a device against the CPU. Without Vulkan it is skipped, said aloud; TIER_GPU_REQUIRED makes that a failure.

#[path = "common/device.rs"]
mod device;

use device::gpu;
use tiergrad::device::{Gpu, Watch};
use tiergrad::gradcheck::deviation;
use tiergrad::loss::{TierOptions, tier_loss};
use tiergrad::models::clip_text::TextConfig;
use tiergrad::models::dual_encoder::Embeddings;
use tiergrad::models::vit::VitConfig;
use tiergrad::models::{DualEncoder, DualEncoderConfig, Network, Planned};
use tiergrad::nn::Module;
use tiergrad::optim::{Optimiser, OptimiserConfig};
use tiergrad::rng::Rng;
use tiergrad::{DType, Tensor, backward_with};

fn config() -> DualEncoderConfig {
    let vision = VitConfig {
        image_size: 32,
        patch_size: 8,
        width: 48,
        depth: 2,
        heads: 3,
        channels: 3,
        class_token: true,
        ..VitConfig::default()
    };
    let text = TextConfig { vocabulary: 50, max_length: 12, width: 32, depth: 2, heads: 2, ..TextConfig::default() };
    DualEncoderConfig { vision: vision.into(), text: text.into(), joint: 24, ..DualEncoderConfig::default() }
}

fn inputs() -> (Tensor, [Tensor; 2]) {
    let mut rng = Rng::new(7, 0);
    let pixels = Tensor::randn([3, 3, 32, 32], DType::F32, &mut rng);
    let ids: Vec<i64> = (0..36).map(|_| rng.below(50) as i64).collect();
    let mask: Vec<u8> = (0..36).map(|k| u8::from(k % 12 < 4 + k / 12 * 3)).collect();
    (pixels, [Tensor::from_slice(&ids, [3, 12]), Tensor::from_slice(&mask, [3, 12])])
}

#[test]
fn a_dual_encoder_infers_there_as_here_and_nothing_falls_back() {
    let Some(gpu) = gpu() else { return };
    let here = Network::Dual(DualEncoder::init(&config(), 1, DType::F32).unwrap());
    let mut there = Network::Dual(DualEncoder::init(&config(), 1, DType::F32).unwrap());
    there.visit_all("", &mut |_, p| *p = p.to_device(&gpu));
    let (pixels, [ids, mask]) = inputs();
    let (expected, planned) = (Planned::new(&here), Planned::new(&there));
    // Eager, then as a plan is made, then by the plan.
    for round in 0..3 {
        let pairs = [
            (planned.encode_image(&pixels), expected.encode_image(&pixels)),
            (planned.encode_text(&ids, &mask), expected.encode_text(&ids, &mask)),
        ];
        for (Embeddings { whole, parts }, e) in pairs {
            assert!(whole.device().is_some() && parts.device().is_some());
            for (got, expected) in [(whole, e.whole), (parts, e.parts)] {
                let off = deviation(&got, &expected);
                assert!(off < 1e-5, "round {round}: {off:e} apart");
            }
        }
    }
    assert_eq!(gpu.fallbacks(), []);
}

/// Matrices and tables as files of `tier convert --dtype` have them stay so on the device; what is computed is what their values in f32 give.
#[test]
fn weights_in_half_infer_there_as_their_values_here() {
    let Some(gpu) = gpu() else { return };
    let tolerance = if gpu.matrices().iter().any(|line| line.contains(": used")) { 2e-2 } else { 1e-5 };
    for dtype in [DType::BF16, DType::F16] {
        let mut models = [0, 1].map(|_| Network::Dual(DualEncoder::init(&config(), 1, DType::F32).unwrap()));
        let mut there = 0;
        for (i, model) in models.iter_mut().enumerate() {
            model.visit_all("", &mut |name, p| {
                let matrix = p.rank() == 2 && name.ends_with(".weight") && !name.contains("position");
                let half = if matrix { p.to_dtype(dtype) } else { p.detach() };
                *p = if i == 0 { half.to_device(&gpu) } else { half.to_dtype(DType::F32) };
                there += usize::from(p.dtype() == dtype && p.device().is_some());
            });
        }
        assert!(there > 10, "{there} matrices in {dtype}");
        let (pixels, [ids, mask]) = inputs();
        let [got, expected] = models.each_ref().map(|model| {
            let planned = Planned::new(model);
            [planned.encode_image(&pixels), planned.encode_text(&ids, &mask)].map(|e| e.whole)
        });
        for (got, expected) in got.iter().zip(&expected) {
            let off = deviation(got, expected);
            assert!(got.device().is_some() && off < tolerance, "{dtype}: {off:e} apart");
        }
    }
    assert_eq!(gpu.fallbacks(), []);
}

#[test]
fn gradients_there_are_those_here() {
    let Some(gpu) = gpu() else { return };
    let (pixels, [ids, mask]) = inputs();
    let gradients = |gpu: Option<&Gpu>| {
        let mut model = DualEncoder::init(&config(), 1, DType::F32).unwrap();
        model.visit("", &mut |_, p| *p = p.placed(gpu).trainable());
        let (images, texts) = (model.encode_image(&pixels), model.encode_text(&ids, &mask));
        let outputs = [images.whole, images.parts, texts.whole, texts.parts];
        let outputs = outputs.map(|y| (y.clone(), Tensor::full(*y.dims(), 0.1, DType::F32)));
        let mut grads = backward_with(outputs.into());
        let mut all = Vec::new();
        model.visit("", &mut |name, p| all.extend(grads.take(p).map(|g| (name.to_owned(), g))));
        all
    };
    for ((name, got), (_, expected)) in gradients(Some(&gpu)).iter().zip(gradients(None)) {
        let off = deviation(got, &expected);
        assert!(off < 2e-5, "{name}: {off:e} apart");
    }
    assert_eq!(gpu.fallbacks(), []);
}

/// Losses and norms of twenty steps with TIER and AdamW, and what the parameters are then.
fn twenty_steps(gpu: Option<&Gpu>) -> (Vec<[f64; 2]>, Vec<Vec<f32>>) {
    let mut model = DualEncoder::init(&config(), 1, DType::F32).unwrap();
    model.visit("", &mut |_, p| *p = p.placed(gpu).trainable());
    let (pixels, [ids, mask]) = inputs();
    // The third text is the first once more.
    let groups = Tensor::from_slice(&[0i64, 1, 0], [3]);
    let options = TierOptions::default();
    let mut optimiser = Optimiser::new(OptimiserConfig { weight_decay: 0.1, ..OptimiserConfig::default() });
    let mut curve = Vec::new();
    for step in 0..20 {
        let pixels = pixels.affine(1.0, 0.1 * f64::from(step % 3)).placed(gpu);
        let (image, text) = (model.encode_image(&pixels), model.encode_text(&ids, &mask));
        let loss = tier_loss(&[image], &text, &mask, &groups, &model.logit_scale, &options).total;
        drop(text);
        let value = loss.item();
        let norm = optimiser.step(&mut model, loss.backward(), 3e-3).unwrap();
        curve.push([value, norm]);
    }
    let mut parameters = Vec::new();
    model.visit("", &mut |_, p| {
        assert!(p.device().is_some() == gpu.is_some());
        parameters.push(p.to_vec());
    });
    (curve, parameters)
}

#[test]
fn a_run_there_is_the_run_here_and_the_same_bits_again() {
    let Some(gpu) = gpu() else { return };
    let ((there, parameters), (here, _)) = (twenty_steps(Some(&gpu)), twenty_steps(None));
    assert!(here[19][0] < 0.5 * here[0][0], "it learns: {here:?}");
    for (step, (there, here)) in there.iter().zip(&here).enumerate() {
        let off = (0..2).map(|k| (there[k] - here[k]).abs() / here[k].abs().max(1.0)).fold(0.0, f64::max);
        println!("step {step}: {there:?} there, {here:?} here");
        assert!(off < 1e-3, "step {step}: {there:?} there, {here:?} here");
    }
    assert_eq!(gpu.fallbacks(), []);
    assert!(twenty_steps(Some(&gpu)) == (there, parameters));
}

/// A step's values and gradients are what the step before submitted, where memory has come to rest: nearly, as submissions end by the clock too
/// (seen: all of them from the third step on). The optimiser's numbers are others in each step, and it is not looked at.
#[test]
fn steps_are_recorded_once_and_replayed() {
    let Some(gpu) = gpu() else { return };
    let mut model = DualEncoder::init(&config(), 1, DType::F32).unwrap();
    model.visit("", &mut |_, p| *p = p.to_device(&gpu).trainable());
    let (pixels, [ids, mask]) = inputs();
    let (pixels, groups) = (pixels.to_device(&gpu), Tensor::from_slice(&[0i64, 1, 0], [3]));
    let mut optimiser = Optimiser::new(OptimiserConfig::default());
    let mut steps = Vec::new();
    for _ in 0..6 {
        let watch = Watch::new(&gpu);
        let (image, text) = (model.encode_image(&pixels), model.encode_text(&ids, &mask));
        let loss = tier_loss(&[image], &text, &mask, &groups, &model.logit_scale, &TierOptions::default()).total;
        drop(text);
        loss.item();
        let grads = loss.backward();
        steps.push(watch.activity().0);
        optimiser.step(&mut model, grads, 1e-3).unwrap();
    }
    assert_eq!(steps[0].replayed, 0);
    let [submitted, replayed] = steps[3..].iter().fold([0; 2], |[s, r], step| [s + step.submitted, r + step.replayed]);
    assert!(submitted > 0 && 10 * replayed >= 9 * submitted, "{steps:?}");
}
