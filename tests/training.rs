//! A tiny dual encoder, trained end to end.

#[path = "../src/shared.rs"]
mod shared;

use tiergrad::loss::{Loss, TierOptions, similarities, tier_loss};
use tiergrad::models::bert::BertConfig;
use tiergrad::models::clip_text::TextConfig;
use tiergrad::models::resnet::ResnetConfig;
use tiergrad::models::vit::VitConfig;
use tiergrad::models::{DualEncoder, DualEncoderConfig, GlobalImage, GlobalText, ImageProjectionKind};
use tiergrad::nn::{Activation, Module, ProjectionKind};
use tiergrad::optim::{Optimiser, OptimiserConfig};
use tiergrad::products::Products;
use tiergrad::rng::Rng;
use tiergrad::{DType, Tensor, recomputing};

fn config(class_token: bool) -> DualEncoderConfig {
    let vision = VitConfig {
        image_size: 8,
        patch_size: 4,
        channels: 1,
        width: 16,
        depth: 2,
        heads: 2,
        class_token,
        activation: Activation::QuickGelu,
        ..VitConfig::default()
    };
    let text = TextConfig { vocabulary: 20, max_length: 6, width: 16, depth: 1, heads: 4, ..TextConfig::default() };
    DualEncoderConfig {
        vision: vision.into(),
        text: text.into(),
        joint: 8,
        global_image: None,
        global_text: None,
        visual_projection: ImageProjectionKind::Linear,
        text_projection: ProjectionKind::Linear,
    }
}

/// BERT and its head for texts, the mean of patches for images.
fn bert_config() -> DualEncoderConfig {
    let text = BertConfig {
        vocabulary: 20,
        max_length: 6,
        width: 12,
        depth: 2,
        heads: 3,
        mlp: 20,
        token_types: 2,
        pooler: false,
        eps: 1e-12,
        activation: Activation::Gelu,
        padding: 0,
    };
    DualEncoderConfig {
        text: text.into(),
        global_image: Some(GlobalImage::MeanPatches),
        global_text: Some(GlobalText::MeanTokens),
        text_projection: ProjectionKind::Head,
        ..config(true)
    }
}

fn build(config: &DualEncoderConfig, dtype: DType) -> DualEncoder {
    let mut model = DualEncoder::init(config, 1, dtype).unwrap();
    model.visit("", &mut |_, p| *p = p.trainable());
    model
}

fn model(class_token: bool, dtype: DType) -> DualEncoder {
    build(&config(class_token), dtype)
}

/// Eight images, each with one bright quadrant and a brightness, and texts that say which.
fn loss(model: &DualEncoder, dtype: DType, options: &TierOptions) -> Loss {
    let (n, mut rng) = (8, Rng::new(11, 0));
    let (mut pixels, mut ids, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..n {
        for at in 0..64 {
            let lit = (at / 32) * 2 + at % 8 / 4 == i % 4;
            pixels.push(if lit { 1.0 + (i / 4) as f64 } else { 0.0 } + 0.1 * rng.normal());
        }
        ids.extend([1, 3 + (i % 4) as i64, 10 + (i / 4) as i64, 2, 0, 0]);
        mask.extend([1u8, 1, 1, 1, 0, 0]);
    }
    let images = model.encode_image(&Tensor::from_slice(&pixels, [n, 1, 8, 8]).to_dtype(dtype));
    let mask = Tensor::from_slice(&mask, [n, 6]);
    let texts = model.encode_text(&Tensor::from_slice(&ids, [n, 6]), &mask);
    let groups = Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n]);
    tier_loss(&[images], &texts, &mask, &groups, &model.logit_scale, options)
}

fn weighed(lambda_p: f64, lambda_t: f64) -> TierOptions {
    TierOptions { lambda_p, lambda_t, ..TierOptions::default() }
}

fn train(model: &mut DualEncoder, steps: usize, options: &TierOptions) -> Vec<f64> {
    let mut optimiser = Optimiser::new(OptimiserConfig::default());
    let mut step = || {
        let loss = loss(model, DType::F32, options).total;
        let value = loss.item();
        optimiser.step(model, loss.backward(), 3e-3).unwrap();
        value
    };
    (0..steps).map(|_| step()).collect()
}

#[test]
fn a_tiny_model_learns_its_pairs() {
    for class_token in [true, false] {
        let losses = train(&mut model(class_token, DType::F32), 150, &weighed(0.0, 0.0));
        assert!(losses[0] > 1.5 && losses[149] < 0.3, "loss went from {} to {}", losses[0], losses[149]);
    }
}

/// Within 3 % of the first loss over 20 steps: bf16 has 8 bits, of which sums of many terms keep more.
#[test]
fn products_in_bf16_learn_as_those_in_f32() {
    for config in [config(true), bert_config()] {
        let curve = |products: Products, steps: usize| {
            let mut model = build(&config, DType::F32);
            products.within(|| train(&mut model, steps, &TierOptions::default()))
        };
        let (wide, half) = (curve(Products::F32, 20), curve(Products::Bf16, 20));
        for (i, (a, b)) in wide.iter().zip(&half).enumerate() {
            assert!((a - b).abs() < 0.03 * wide[0], "step {i}: {b} instead of {a}");
        }
        assert!(wide != half && half[19] < 0.9 * half[0], "{half:?}");
        let long = curve(Products::Bf16, 150);
        assert!(long[149] < 0.5 * long[0], "from {} to {}", long[0], long[149]);
    }
}

/// Loss, gradients and running statistics, for less memory.
#[test]
fn blocks_that_are_computed_again_give_the_same_bits() {
    let resnet = ResnetConfig { image_size: 32, channels: 1, depths: vec![1, 2], base: 4, ..ResnetConfig::default() };
    let residual = DualEncoderConfig { vision: resnet.into(), ..bert_config() };
    for (config, side) in [(config(true), 8), (bert_config(), 8), (residual, 32)] {
        let run = |products: Products, again: bool| {
            let mut model = build(&config, DType::F32);
            let mut rng = Rng::new(5, 0);
            let pixels = Tensor::randn([4, 1, side, side], DType::F32, &mut rng);
            let ids = Tensor::from_slice(&(0..24).map(|i| 1 + i * 7 % 19).collect::<Vec<i64>>(), [4, 6]);
            let (mask, groups) = (Tensor::full([4, 6], 1.0, DType::U8), Tensor::from_slice(&[0i64, 1, 2, 3], [4]));
            let (value, grads, noted) = recomputing(again, || {
                products.within(|| {
                    let (images, noted) = model.encode_image_train(&pixels);
                    let texts = model.encode_text(&ids, &mask);
                    let options = TierOptions::default();
                    let loss = tier_loss(&[images], &texts, &mask, &groups, &model.logit_scale, &options).total;
                    (loss.item(), loss.backward(), noted)
                })
            });
            noted.apply(&mut model);
            let mut bits = vec![value.to_bits()];
            let mut add = |t: &Tensor| bits.extend(t.to_vec::<f32>().iter().map(|x| u64::from(x.to_bits())));
            model.visit("", &mut |_, p| add(grads.get(p).unwrap()));
            model.visit_buffers("", &mut |_, t| add(t));
            bits
        };
        let [wide, half] = [Products::F32, Products::Bf16].map(|products| {
            let bits = run(products, false);
            assert!(bits == run(products, true), "{products:?}");
            bits
        });
        assert!(wide != half);
    }
}

#[test]
fn tier_lowers_the_entropy_that_it_weighs() {
    let entropy = |lambda_p| {
        let mut model = model(false, DType::F32);
        train(&mut model, 100, &weighed(lambda_p, 0.0));
        loss(&model, DType::F32, &TierOptions::default()).patch_entropy.item()
    };
    let (without, with) = (entropy(0.0), entropy(2.0));
    assert!(with < without - 0.05, "{without} without, {with} with the penalty");
}

#[test]
fn any_thread_count_trains_to_the_same_bits() {
    let run = |threads| {
        kernels_cpu::par::Pool::new(threads).install(|| {
            let mut model = model(true, DType::F32);
            train(&mut model, 5, &TierOptions::default());
            let mut bits = Vec::new();
            model.visit("", &mut |_, p| bits.extend(p.to_vec::<f32>().iter().map(|x| x.to_bits())));
            bits
        })
    };
    let one = run(1);
    assert!([2, 3, 7].iter().all(|&threads| run(threads) == one));
}

#[test]
fn the_whole_model_has_the_gradient_that_differences_have() {
    let options = weighed(3.0, 2.0);
    for config in [config(true), bert_config()] {
        let mut whole = build(&config, DType::F64);
        let grads = loss(&whole, DType::F64, &options).total.backward();
        let mut rng = Rng::new(1, 1);
        let mut checks = Vec::new();
        whole.visit("", &mut |name, p| {
            let direction = Tensor::randn(*p.dims(), DType::F64, &mut rng);
            let gradient = grads.get(p).unwrap_or_else(|| panic!("no gradient for {name}"));
            checks.push((name.to_owned(), gradient.mul(&direction).sum_all().item(), direction));
        });
        for (name, analytic, direction) in &checks {
            let shifted = |h: f64| {
                let mut moved = build(&config, DType::F64);
                moved.visit("", &mut |n, p| *p = if n == name { p.detach().add(&(direction * h)) } else { p.detach() });
                loss(&moved, DType::F64, &options).total.item()
            };
            let numeric = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
            assert!(
                (analytic - numeric).abs() < 1e-6 * (1.0 + numeric.abs()),
                "{name}: backward {analytic}, differences {numeric}"
            );
        }
    }
}

#[test]
fn the_logit_scale_is_held_at_its_maximum() {
    let mut model = model(true, DType::F32);
    model.logit_scale = Tensor::scalar(7.0f32);
    model.clamp_logit_scale().unwrap();
    assert_eq!(model.logit_scale.item(), f64::from(tiergrad::models::dual_encoder::MAX_LOGIT_SCALE as f32));
    model.logit_scale = Tensor::scalar(2.0f32);
    model.clamp_logit_scale().unwrap();
    assert_eq!(model.logit_scale.item(), 2.0);
}

#[test]
fn a_parameter_without_gradient_is_an_error_that_names_it() {
    let mut model = model(true, DType::F32);
    let loss = model.encode_image(&Tensor::zeros([1, 1, 8, 8], DType::F32)).whole.square().mean_all();
    let error =
        Optimiser::new(OptimiserConfig::default()).step(&mut model, loss.backward(), 1e-3).unwrap_err().to_string();
    assert!(error.contains("text_model.embeddings.token_embedding.weight") && error.contains("logit_scale"), "{error}");
}

/// The worked values of the penalty, where TIER_SHARED names the folder that has them.
#[test]
fn the_reference_values_of_the_penalty_are_reproduced() {
    let Some(reference) = shared::shared("reference") else { return };
    let file = reference.join("tier_penalty.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    fn numbers(value: &serde_json::Value) -> Vec<f64> {
        value.as_array().map_or_else(|| vec![value.as_f64().unwrap()], |items| items.iter().flat_map(numbers).collect())
    }
    let [n, t, p, e] = ["N", "T", "P", "E"].map(|key| json[key].as_u64().unwrap() as usize);
    let tokens = Tensor::from_slice(&numbers(&json["token_embeddings"]), [n, t, e]);
    let patches = Tensor::from_slice(&numbers(&json["patch_embeddings"]), [n, p, e]);
    let s = similarities(&tokens, &patches).to_vec::<f64>();
    assert!(s.iter().zip(numbers(&json["S"])).all(|(a, b)| (a - b).abs() < 1e-12));
    let mut checked = 0;
    for (key, expected) in json.as_object().unwrap() {
        let Some(eps) = key.strip_prefix("eps=") else { continue };
        let s = similarities(&tokens, &patches).trainable();
        let entropies = s.tier(&Tensor::full([n, t], 1.0, DType::U8), eps.parse().unwrap(), 1.0);
        let values = entropies.to_vec::<f64>();
        assert!((values[0] - expected["H_over_patches"].as_f64().unwrap()).abs() < 1e-6);
        assert!((values[1] - expected["H_over_tokens"].as_f64().unwrap()).abs() < 1e-6);
        // The pseudocode's weights, and those of the paper's code.
        for (swap_lambdas, whose) in [(false, "penalty_pseudocode"), (true, "penalty_official_code")] {
            let weights = TierOptions { swap_lambdas, ..TierOptions::default() }.weights();
            let penalty: f64 = weights.iter().zip(&values).map(|(weight, entropy)| weight * entropy).sum();
            let (_, expected) = expected.as_object().unwrap().iter().find(|(key, _)| key.starts_with(whose)).unwrap();
            assert!((penalty - expected.as_f64().unwrap()).abs() < 1e-6, "{whose}: {penalty}");
        }
        let grads = entropies.mul(&Tensor::from_slice(&[0.2, 0.1], [2])).sum_all().backward();
        let slopes = numbers(&expected["grad_S_pseudocode_weights"]);
        assert!(grads.get(&s).unwrap().to_vec::<f64>().iter().zip(&slopes).all(|(a, b)| (a - b).abs() < 1e-6));
        checked += 1;
    }
    assert!(checked >= 2, "{checked} worked values");
}
