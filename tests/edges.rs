//! Numbers at the edges: values and gradients must stay finite and right, in f32 on every tier and in f64.

use kernels_cpu::Isa;
use kernels_cpu::par::Pool;
use tiergrad::gradcheck::Case;
use tiergrad::loss::{TierOptions, logits, tier_loss};
use tiergrad::models::clip_text::TextConfig;
use tiergrad::models::dual_encoder::{Embeddings, MAX_LOGIT_SCALE};
use tiergrad::models::resnet::{BlockKind, ResnetConfig};
use tiergrad::models::vit::VitConfig;
use tiergrad::models::{DualEncoder, DualEncoderConfig, GlobalText, ImageProjectionKind};
use tiergrad::nn::{Activation, Module};
use tiergrad::ops::attention::{Attention, attention};
use tiergrad::rng::Rng;
use tiergrad::{DType, Tensor, backward_with};

fn tensor(values: &[f64], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims)
}

fn drawn(dims: &[usize], scale: f64) -> Tensor {
    Tensor::randn(dims, DType::F64, &mut Rng::new(dims.iter().sum::<usize>() as u64, 1)).affine(scale, 0.0)
}

fn ones(dims: &[usize], of: u8) -> Tensor {
    Tensor::full(dims, f64::from(of), DType::U8)
}

/// Value and gradient are finite in f32 and f64.
#[track_caller]
fn finite(inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor) {
    for dtype in [DType::F32, DType::F64] {
        let cast = |x: &Tensor| if x.dtype() == DType::F64 { x.to_dtype(dtype).trainable() } else { x.clone() };
        let leaves: Vec<Tensor> = inputs.iter().map(cast).collect();
        let y = f(&leaves);
        assert!(y.to_f64_vec().iter().all(|v| v.is_finite()), "value in {dtype}: {y:?}");
        let one = Tensor::full(*y.dims(), 1.0, dtype);
        let mut grads = backward_with(vec![(y, one)]);
        for leaf in leaves.iter().filter(|l| l.is_tracked()) {
            let gradient = grads.take(leaf).expect("a gradient");
            assert!(gradient.to_f64_vec().iter().all(|v| v.is_finite()), "gradient in {dtype}: {gradient:?}");
        }
    }
}

/// As [`finite`]; f32 agrees with f64 on every tier. For where finite differences see a kink or nothing.
#[track_caller]
fn agrees(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static) {
    finite(inputs, &f);
    let case = Case::new(inputs.to_vec(), f);
    for isa in Isa::available() {
        Pool::on(isa, 1).install(|| case.check_single(&mut Rng::new(1, 0)));
    }
}

/// As [`agrees`]; f64's gradient is that of finite differences.
#[track_caller]
fn right(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor + Send + Sync + Clone + 'static) {
    agrees(inputs, f.clone());
    Case::new(inputs.to_vec(), f).gradient(&mut Rng::new(2, 0)).unwrap();
}

#[test]
fn similarity_rows_that_are_equal_or_one_hot() {
    let n = 5;
    let pairs = Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n]);
    let equal = Tensor::full([n, n], 3.0, DType::F64);
    let on = |place: &dyn Fn(usize, usize) -> bool| {
        let values: Vec<f64> = (0..n * n).map(|k| if place(k / n, k % n) { 100.0 } else { 0.0 }).collect();
        tensor(&values, &[n, n])
    };
    for s in [equal, on(&|i, j| i == j), on(&|i, j| (i + 1) % n == j), on(&|_, j| j == 2)] {
        right(&[s.clone(), pairs.clone()], |x| x[0].contrastive(&x[1]));
        right(std::slice::from_ref(&s), |x| x[0].softmax());
        right(std::slice::from_ref(&s), |x| x[0].log_softmax());
        // As one pair's tokens by patches.
        right(&[s.reshape([1, n, n]), ones(&[1, n], 1)], |x| x[0].tier(&x[1], 1e-7, 1.0));
    }
    assert!((Tensor::full([n, n], 3.0, DType::F64).contrastive(&pairs).item() - (n as f64).ln()).abs() < 1e-12);
    let entropies = Tensor::zeros([2, 3, 4], DType::F32).tier(&ones(&[2, 3], 1), 0.0, 1.0).to_f64_vec();
    assert!((entropies[0] - 4f64.ln()).abs() < 1e-6 && (entropies[1] - 3f64.ln()).abs() < 1e-6, "{entropies:?}");
}

#[test]
fn temperatures_from_one_thousandth_to_a_thousand() {
    let (s, mask) = (drawn(&[2, 5, 6], 0.5), ones(&[2, 5], 1));
    for temperature in [0.05, 1.0, 1e3] {
        right(&[s.clone(), mask.clone()], move |x| x[0].tier(&x[1], 1e-7, temperature));
    }
    // So cold that softmaxes are one-hot: rounding times 1/temperature is what f32 can know.
    for temperature in [1e-3, 1e-6] {
        finite(&[s.clone(), mask.clone()], &|x| x[0].tier(&x[1], 1e-7, temperature));
        let entropies = s.to_dtype(DType::F32).tier(&mask, 1e-7, temperature).to_f64_vec();
        assert!(entropies.iter().all(|h| h.abs() < 1e-2), "{entropies:?}");
    }
}

#[test]
fn rows_that_are_all_padding() {
    let mask = Tensor::from_slice(&[1u8, 1, 0, 0, 0, 0], [2, 3]);
    right(&[drawn(&[2, 3, 4], 1.0), mask.clone()], |x| x[0].tier(&x[1], 1e-7, 1.0));
    finite(&[drawn(&[2, 3, 4], 1.0), ones(&[2, 3], 0)], &|x| x[0].tier(&x[1], 1e-7, 1.0));
    right(&[drawn(&[2, 3], 1.0), mask.clone()], |x| x[0].masked_softmax(&x[1]));
    let q = drawn(&[2, 2, 3, 4], 1.0);
    let (k, v) = (drawn(&[2, 2, 3, 4], 0.7), drawn(&[2, 2, 3, 4], 1.3));
    for causal in [false, true] {
        right(&[q.clone(), k.clone(), v.clone(), mask.clone()], move |x| {
            attention(&x[0], &x[1], &x[2], Some(&x[3]), Attention { causal, dropout: None })
        });
    }
    right(&[drawn(&[2, 4], 1.0), Tensor::from_slice(&[-100i64, -100], [2])], |x| x[0].cross_entropy(&x[1], -100));
}

#[test]
fn one_pair_one_patch_one_token() {
    right(&[drawn(&[1, 1], 1.0), Tensor::from_slice(&[0i64], [1])], |x| x[0].contrastive(&x[1]));
    for dims in [[2, 1, 1], [2, 1, 5], [2, 5, 1]] {
        right(&[drawn(&dims, 1.0), ones(&dims[..2], 1)], |x| x[0].tier(&x[1], 1e-7, 1.0));
    }
    let whole = |n: usize, t: usize, p: usize| {
        right(
            &[
                drawn(&[n, 6], 1.0),
                drawn(&[n, p, 6], 1.0),
                drawn(&[n, 6], 0.8),
                drawn(&[n, t, 6], 1.0),
                tensor(&[2.0], &[]),
            ],
            move |x| {
                let images = Embeddings { whole: x[0].clone(), parts: x[1].clone() };
                let texts = Embeddings { whole: x[2].clone(), parts: x[3].clone() };
                let groups = Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n]);
                tier_loss(&[images], &texts, &ones(&[n, t], 1), &groups, &x[4], &TierOptions::default()).total
            },
        );
    };
    whole(1, 3, 4);
    whole(3, 1, 1);
    whole(1, 1, 1);
}

#[test]
fn the_logit_scale_at_its_clamp() {
    let groups = Tensor::from_slice(&[0i64, 1, 2, 3], [4]);
    let images = drawn(&[4, 7], 1.0);
    // Texts of their own, and the images themselves: logits of 100 beside others.
    for texts in [drawn(&[4, 7], 0.9).affine(1.0, 0.1), images.clone()] {
        let scale = tensor(&[MAX_LOGIT_SCALE], &[]);
        right(&[images.clone(), texts.clone()], {
            let (scale, groups) = (scale.clone(), groups.clone());
            move |x| logits(&x[0], &x[1], &scale.to_dtype(x[0].dtype())).contrastive(&groups).affine(0.01, 0.0)
        });
        finite(&[images.clone(), texts, scale], &|x| logits(&x[0], &x[1], &x[2]).contrastive(&groups));
    }
}

#[test]
fn weights_and_activations_too_small_for_f32s_normal_range() {
    let small = drawn(&[3, 8], 1e-40);
    let x = drawn(&[5, 8], 1.0);
    agrees(&[x.clone(), small.clone()], |x| x[0].linear(&x[1], None, None));
    agrees(&[drawn(&[5, 8], 1e-40), drawn(&[8], 1.0), drawn(&[8], 1.0)], |x| x[0].layer_norm(&x[1], &x[2], 1e-5));
    agrees(std::slice::from_ref(&small), |x| x[0].softmax());
    agrees(std::slice::from_ref(&small), |x| x[0].gelu());
    // Nothing to normalise: the gradient is 1e12 times that of the output, and f32 has it.
    finite(std::slice::from_ref(&small), &|x| x[0].l2_normalise());
    finite(&[Tensor::zeros([2, 4], DType::F64)], &|x| x[0].l2_normalise());
    finite(&[Tensor::zeros([4, 3], DType::F64), drawn(&[3], 1.0), drawn(&[3], 1.0)], &|x| {
        x[0].batch_norm_train(&x[1], &x[2], 1e-5).0
    });
}

#[test]
fn activations_of_ten_thousand() {
    let x = drawn(&[4, 6], 1e4);
    for f in [
        (|x: &[Tensor]| x[0].softmax()) as fn(&[Tensor]) -> Tensor,
        |x| x[0].gelu(),
        |x| x[0].tanh(),
        |x| x[0].sigmoid(),
        |x| x[0].l2_normalise(),
        |x| x[0].log_softmax(),
    ] {
        agrees(std::slice::from_ref(&x), f);
    }
    agrees(&[x.clone(), drawn(&[6], 1.0), drawn(&[6], 1.0)], |x| x[0].layer_norm(&x[1], &x[2], 1e-5));
    agrees(&[x.clone(), drawn(&[6], 1.0), drawn(&[6], 1.0)], |x| x[0].batch_norm_train(&x[1], &x[2], 1e-5).0);
    agrees(&[x.clone(), Tensor::from_slice(&[0i64, 3, 5, 1], [4])], |x| x[0].cross_entropy(&x[1], -100));
    let qkv = [1.0, 2.0, 3.0].map(|factor| drawn(&[1, 2, 3, 4], 1e4 * factor));
    agrees(&qkv, |x| attention(&x[0], &x[1], &x[2], None, Attention { causal: false, dropout: None }));
}

const CLOSE: f64 = 1e-4;

fn config(resnet: bool) -> DualEncoderConfig {
    let vit = VitConfig {
        image_size: 8,
        patch_size: 4,
        width: 12,
        depth: 1,
        heads: 2,
        class_token: true,
        activation: Activation::QuickGelu,
        ..VitConfig::default()
    };
    let block = BlockKind::Basic;
    let cnn = ResnetConfig { channels: 1, block, depths: vec![1, 1], base: 4, ..ResnetConfig::default() };
    let text = TextConfig { vocabulary: 9, max_length: 4, width: 8, depth: 1, heads: 2, ..TextConfig::default() };
    let projection = if resnet { ImageProjectionKind::Projector } else { ImageProjectionKind::Linear };
    DualEncoderConfig {
        vision: if resnet { cnn.into() } else { vit.into() },
        text: text.into(),
        joint: 6,
        global_text: Some(GlobalText::MeanTokens),
        visual_projection: projection,
        ..DualEncoderConfig::default()
    }
}

/// A whole model: loss and gradient of f32 beside those of f64 from the same weights and inputs, relative to the gradient's norm.
#[track_caller]
fn whole_model(resnet: bool, pixels: &Tensor, mask: &[u8], tolerance: f64, change: &dyn Fn(&str, &Tensor) -> Tensor) {
    let n = pixels.dims()[0];
    let run = |dtype: DType| {
        let mut model = DualEncoder::init(&config(resnet), 3, DType::F32).unwrap();
        model.visit("", &mut |name, p| *p = change(name, p).to_dtype(DType::F32).to_dtype(dtype).trainable());
        model.visit_buffers("", &mut |_, t| *t = t.to_dtype(dtype));
        let ids = Tensor::from_slice(&(0..n * 4).map(|k| (k * 5 % 9) as i64).collect::<Vec<_>>(), [n, 4]);
        let mask = Tensor::from_slice(mask, [n, 4]);
        let (images, _) = model.encode_image_train(&pixels.to_dtype(DType::F32).to_dtype(dtype));
        let texts = model.encode_text(&ids, &mask);
        let groups = Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n]);
        let loss = tier_loss(&[images], &texts, &mask, &groups, &model.logit_scale, &TierOptions::default()).total;
        let value = loss.item();
        let grads = loss.backward();
        let mut all = vec![("loss".to_owned(), vec![value])];
        model.visit("", &mut |name, p| all.push((name.to_owned(), grads.get(p).map_or(vec![0.0], |g| g.to_f64_vec()))));
        all
    };
    let exact = run(DType::F64);
    let norm = exact[1..].iter().flat_map(|(_, g)| g).map(|g| g * g).sum::<f64>().sqrt();
    for ((name, single), (_, double)) in run(DType::F32).iter().zip(&exact) {
        let scale = if name == "loss" { double[0].abs() } else { norm }.max(1e-3);
        for (a, e) in single.iter().zip(double) {
            assert!(
                a.is_finite() && e.is_finite() && (a - e).abs() <= tolerance * scale,
                "{name}: {a:e} instead of {e:e}"
            );
        }
    }
}

#[test]
fn whole_models_at_the_edges() {
    let same = |_: &str, p: &Tensor| p.clone();
    for resnet in [false, true] {
        let pixels =
            |n: usize, scale: f64| drawn(&[n, 1, if resnet { 32 } else { 8 }, if resnet { 32 } else { 8 }], scale);
        whole_model(resnet, &pixels(1, 1.0), &[1, 1, 0, 0], CLOSE, &same);
        whole_model(resnet, &pixels(2, 1.0), &[1, 1, 1, 0, 0, 0, 0, 0], CLOSE, &same);
        whole_model(resnet, &pixels(2, 1e4), &[1; 8], CLOSE, &same);
        // Of a blank picture a fresh residual network makes embeddings of zero, whose direction is rounding: finite is all it can be.
        whole_model(resnet, &pixels(2, 0.0), &[1; 8], if resnet { f64::INFINITY } else { CLOSE }, &same);
        let clamped =
            |name: &str, p: &Tensor| if name == "logit_scale" { p.affine(0.0, MAX_LOGIT_SCALE) } else { p.clone() };
        whole_model(resnet, &pixels(2, 1.0), &[1; 8], CLOSE, &clamped);
        let tiny =
            |name: &str, p: &Tensor| if name.ends_with("projection.weight") { p.affine(1e-38, 0.0) } else { p.clone() };
        whole_model(resnet, &pixels(2, 1.0), &[1; 8], CLOSE, &tiny);
    }
}
