//! A model against a parity case: embeddings, similarities, losses, gradients, running statistics and steps of Adam.

use std::collections::BTreeMap;

use super::case::Case;
use crate::buffer::counted;
use crate::checkpoints::Checkpoint;
use crate::checkpoints::names::Names;
use crate::device::Gpu;
use crate::distance;
use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::loss;
use crate::models::{GlobalImage, Network, NetworkConfig, Said, TextTowerConfig};
use crate::nn::{Module, Noted, Source};
use crate::optim::{Optimiser, OptimiserConfig, Rule};
use crate::tape::Grads;
use crate::tensor::Tensor;

/// One tensor compared.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name in the case.
    pub name: String,
    /// Largest difference; not a number where nothing was compared.
    pub max_abs: f64,
    /// |a - e| / |e|; of a gradient |a - e| / (|e| + 0.001 norm of the whole gradient).
    pub relative: f64,
    /// Most that `relative` may be.
    pub tolerance: f64,
    /// Whether it is.
    pub passed: bool,
    /// Why not, where it is not a matter of size.
    pub why: Option<String>,
}

/// Share of the whole gradient's norm that each gradient's is raised by: some are zero but for rounding, such as those of biases of keys.
const FLOOR: f64 = 1e-3;

/// Compares everything that a case expects with what this program computes, in f32 and in the order of the names.
///
/// # Errors
/// If the case does not fit the model.
pub fn verify(checkpoint: &Checkpoint, case: &Case) -> Result<Vec<Check>> {
    verify_on(None, checkpoint, case)
}

/// As [`verify`], on a device.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(gpu: Option<&Gpu>, checkpoint: &Checkpoint, case: &Case) -> Result<Vec<Check>> {
    case.fits(&checkpoint.config).at(&case.path)?;
    if let Some(gpu) = gpu {
        let (bytes, remedy) = (memory(checkpoint, case)?, "One of fewer pairs, or of a smaller model, takes less");
        gpu.fits(bytes, "this case", remedy).at(&case.path)?;
    }
    let mut network = trainable(gpu, checkpoint)?;
    let mut found = compute(&mut network, &checkpoint.names(), case).at(&case.path)?;
    if checkpoint.weights().count() > 1 {
        let joined = case.expected.keys().filter_map(|name| Some((name.clone(), found.get(&unjoined(name)?)?.clone())));
        found.extend(joined.collect::<Vec<_>>());
    }
    let check = |(name, expected): (&String, &Tensor)| {
        let floor = if name.starts_with("grad.") { FLOOR * case.grad_norm.unwrap_or(0.0) } else { 0.0 };
        compare(name, expected, found.get(name), case.tolerance(name), floor)
    };
    let mut checks: Vec<Check> = case.expected.iter().map(check).collect();
    if let (Some(norm), Some(found)) = (case.grad_norm, found.get(GRAD_NORM)) {
        let expected = Tensor::scalar(norm);
        checks.push(compare(GRAD_NORM, &expected, Some(found), case.tolerance(GRAD_NORM), 0.0));
    }
    Ok(checks)
}

/// The name in its own checkpoint of a tensor of a model that is joined from two, which TIER's class calls `cnn` and `transformer`.
fn unjoined(name: &str) -> Option<String> {
    let (kind, name) = name.split_once('.')?;
    Some(format!("{kind}.{}", name.strip_prefix("cnn.").or_else(|| name.strip_prefix("transformer."))?))
}

/// Where the model and what the case says of it differ, in words.
pub fn contradictions(config: &NetworkConfig, case: &Case) -> Vec<String> {
    let global = |class_token, chosen| GlobalImage::or_default(chosen, class_token).name();
    let images = match config {
        NetworkConfig::TiergradDualEncoder(c) => Some(global(c.vision.class_token(), c.global_image)),
        NetworkConfig::TiergradImageModel(c) => Some(global(c.vision.class_token(), c.global_image)),
        _ => None,
    };
    let masked = config.text().map(|text| match text {
        TextTowerConfig::Clip(c) => c.text_uses_attention_mask.to_string(),
        TextTowerConfig::Bert(_) => true.to_string(),
    });
    let ours = [
        ("global_image", images.map(str::to_owned).filter(|_| case.inputs.pixels.is_some())),
        ("text_uses_attention_mask", masked.filter(|_| case.inputs.texts.is_some())),
    ];
    let differs = |(key, ours): (&str, Option<String>)| {
        let (ours, said) = (ours?, case.said.get(key)?);
        (ours != *said).then(|| format!("{key} is {said} in the case, {ours} in the model as it was loaded"))
    };
    ours.into_iter().filter_map(differs).collect()
}

/// The model in f32, every parameter of its own and trainable.
fn trainable(gpu: Option<&Gpu>, checkpoint: &Checkpoint) -> Result<Network> {
    let mut tensors = checkpoint.tensors()?;
    for (name, tensor) in &mut tensors {
        if !tensor.dtype().is_float() {
            let dtype = tensor.dtype();
            return Err(Error::new(format!("{name} is {dtype}, not a floating type")).at(&checkpoint.path));
        }
        *tensor = tensor.to_dtype(DType::F32);
    }
    let mut network = Network::new(&Source::tensors(&tensors).params(), &checkpoint.config).at(&checkpoint.path)?;
    network.visit("", &mut |_, p| *p = p.copied().placed(gpu).trainable());
    Ok(network)
}

/// Bytes that a pass and its gradients take, weights with them.
fn memory(checkpoint: &Checkpoint, case: &Case) -> Result<u64> {
    let (passed, memory) = counted(|| {
        let network = trainable(None, checkpoint)?;
        drop(Pass::new(&network, case)?.loss.map(|loss| loss.backward()));
        Ok(())
    });
    passed.map(|()| memory.held as u64)
}

const GRAD_NORM: &str = "grad_norm";

/// All that can be computed for a case, by the names that cases have.
fn compute(network: &mut Network, names: &Names, case: &Case) -> Result<BTreeMap<String, Tensor>> {
    let first = Pass::new(network, case)?;
    let Pass { mut values, loss, noted } = first;
    if let Some(noted) = noted {
        noted.apply(network);
        let mut buffers = BTreeMap::new();
        network.visit_buffers("", &mut |name, t| {
            buffers.insert(name.to_owned(), t.clone());
        });
        values.extend(names.foreign(&buffers)?.into_iter().map(|(name, t)| (format!("after.{name}"), t)));
    }
    let Some(loss) = loss else { return Ok(values) };
    let mut losses = vec![loss.item()];
    let mut grads = loss.backward();
    let mut gradients = BTreeMap::new();
    network.visit("", &mut |name, p| match grads.get(p) {
        Some(gradient) => {
            gradients.insert(name.to_owned(), gradient.clone());
        }
        // PyTorch's optimisers pass over what the loss does not depend on.
        None => *p = p.detach(),
    });
    let squares = |g: &Tensor| g.to_f64_vec().iter().map(|x| x * x).sum::<f64>();
    values.insert(GRAD_NORM.to_owned(), Tensor::scalar(gradients.values().map(squares).sum::<f64>().sqrt()));
    values.extend(names.foreign(&gradients)?.into_iter().map(|(name, g)| (format!("grad.{name}"), g)));
    // That of a joined model is in neither checkpoint.
    let scale = gradients.remove("logit_scale").map(|g| ("grad.logit_scale".to_owned(), g));
    values.extend(scale.filter(|_| names.foreign_name("logit_scale").is_none()));
    if let Some(adam) = case.adam {
        let config = OptimiserConfig {
            rule: Rule::Adam,
            weight_decay: adam.weight_decay,
            decay_exempt: Vec::new(),
            clip_norm: 0.0,
            ..OptimiserConfig::default()
        };
        let mut optimiser = Optimiser::new(config);
        for _ in 1..adam.steps {
            optimiser.step(network, grads, adam.lr)?;
            (losses, grads) = next(network, case, losses)?;
        }
        values.insert("adam.losses".to_owned(), Tensor::from_slice(&losses, [losses.len()]));
    }
    Ok(values)
}

/// The loss of one more pass, behind the others, and its gradients.
fn next(network: &Network, case: &Case, mut losses: Vec<f64>) -> Result<(Vec<f64>, Grads)> {
    let loss = Pass::new(network, case)?.loss.ok_or_else(|| Error::new("no objective"))?;
    losses.push(loss.item());
    Ok((losses, loss.backward()))
}

/// One forward pass.
struct Pass {
    values: BTreeMap<String, Tensor>,
    /// With its graph.
    loss: Option<Tensor>,
    /// Of batch norms, where they went by the batch.
    noted: Option<Noted>,
}

impl Pass {
    fn new(network: &Network, case: &Case) -> Result<Self> {
        let (images, noted) = match &case.inputs.pixels {
            Some(pixels) => {
                let (images, noted) = say_images(network, pixels, case.train)?;
                (Some(images), noted)
            }
            None => (None, None),
        };
        let say_texts = |[ids, mask]: &[Tensor; 2]| {
            network.say_texts(ids, mask).ok_or_else(|| Error::new("input_ids, but this model knows no texts"))
        };
        let texts = case.inputs.texts.as_ref().map(say_texts).transpose()?;
        let mut values = BTreeMap::new();
        for (said, names) in [(&images, ["image_embeds", "patch_embeds"]), (&texts, ["text_embeds", "token_embeds"])] {
            let Some((output, embeddings)) = said else { continue };
            values.extend(output.as_ref().map(|output| ("output".to_owned(), output.detach())));
            if let Some(of) = embeddings {
                values.insert(names[0].to_owned(), of.whole.detach());
                values.insert(names[1].to_owned(), of.parts.detach());
            }
        }
        let mut pass = Self { values, loss: None, noted };
        if let (Some(options), Some((_, Some(images))), Some((_, Some(texts))), Some([_, mask])) =
            (&case.objective, images, &texts, &case.inputs.texts)
        {
            let Network::Dual(model) = network else {
                return Err(Error::new("an objective, but this model has one side alone"));
            };
            let n = i64::try_from(mask.dims()[0]).unwrap_or(i64::MAX);
            let groups = Tensor::from_slice(&(0..n).collect::<Vec<_>>(), [mask.dims()[0]]);
            let logits = loss::logits(&images.whole, &texts.whole, &model.logit_scale);
            let loss = loss::tier_loss(&[images], texts, mask, &groups, &model.logit_scale, options);
            for (name, value) in [
                ("logits_per_image", &logits),
                ("loss_clip", &loss.clip),
                ("patch_entropy", &loss.patch_entropy),
                ("token_entropy", &loss.token_entropy),
                ("loss", &loss.total),
            ] {
                pass.values.insert(name.to_owned(), value.detach());
            }
            pass.loss = Some(loss.total);
        }
        Ok(pass)
    }
}

/// What a network says of pixels; where it trains, with what its batch norms noted.
fn say_images(network: &Network, pixels: &Tensor, train: bool) -> Result<(Said, Option<Noted>)> {
    Ok(match network {
        Network::Dual(model) if train => {
            let (embeddings, noted) = model.encode_image_train(pixels);
            ((None, Some(embeddings)), Some(noted))
        }
        Network::Image(model) if train => {
            let (said, noted) = model.forward_train(pixels);
            ((Some(said.0), said.1), Some(noted))
        }
        _ if train => return Err(Error::new("train_mode is train, which this kind of model does not have here")),
        network => {
            let said = network.say_images(pixels);
            (said.ok_or_else(|| Error::new("pixel_values, but this model knows no images"))?, None)
        }
    })
}

/// An expected tensor and what was found; of a gradient the expected rows may be the first ones.
fn compare(name: &str, expected: &Tensor, found: Option<&Tensor>, tolerance: f64, floor: f64) -> Check {
    let failed = |why: String| Check {
        name: name.to_owned(),
        max_abs: f64::NAN,
        relative: f64::NAN,
        tolerance,
        passed: false,
        why: Some(why),
    };
    let Some(found) = found else { return failed("not computed: this model has nothing of that name".to_owned()) };
    let (want, have) = (*expected.dims(), *found.dims());
    let rows = name.starts_with("grad.")
        && want.len() == have.len()
        && want.first() < have.first()
        && want.get(1..) == have.get(1..);
    if want != have && !rows {
        return failed(format!("has dims {have:?}, the case expects {want:?}"));
    }
    let found = if rows { found.narrow(0, 0, want[0]) } else { found.clone() };
    let (expected, found) = (expected.to_f64_vec(), found.to_f64_vec());
    if let Some(at) = found.iter().position(|x| !x.is_finite()) {
        return failed(format!("element {at} is {}", found[at]));
    }
    let (max_abs, relative) = (distance::largest(&found, &expected), distance::l2(&found, &expected, floor));
    Check { name: name.to_owned(), max_abs, relative, tolerance, passed: relative <= tolerance, why: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], dims: &[usize]) -> Tensor {
        Tensor::from_slice(values, dims)
    }

    #[test]
    fn differences_are_relative_to_the_whole_and_gradients_also_to_the_whole_gradient() {
        let expected = tensor(&[3.0, 4.0], &[2]);
        let off = compare("loss", &expected, Some(&tensor(&[3.0, 4.5], &[2])), 0.11, 0.0);
        assert!(off.passed && (off.relative - 0.1).abs() < 1e-9 && (off.max_abs - 0.5).abs() < 1e-9, "{off:?}");
        assert!(!compare("loss", &expected, Some(&tensor(&[3.0, 4.5], &[2])), 0.09, 0.0).passed);
        assert!(compare("grad.x", &expected, Some(&tensor(&[3.0, 4.5], &[2])), 0.09, 5.0).passed);
        // Nothing expected and nothing found is right; nothing expected and something found is not.
        assert!(compare("loss", &tensor(&[0.0], &[1]), Some(&tensor(&[0.0], &[1])), 1e-5, 0.0).passed);
        assert!(!compare("loss", &tensor(&[0.0], &[1]), Some(&tensor(&[1e-6], &[1])), 1e-5, 0.0).passed);
    }

    #[test]
    fn what_is_missing_not_finite_or_of_other_dims_fails() {
        let expected = tensor(&[1.0, 2.0], &[1, 2]);
        let why = |name: &str, found: Option<Tensor>| {
            let check = compare(name, &expected, found.as_ref(), 1e3, 0.0);
            assert!(!check.passed);
            check.why.unwrap()
        };
        assert!(why("loss", None).contains("not computed"));
        assert!(why("loss", Some(tensor(&[1.0, f32::NAN], &[1, 2]))).contains("element 1 is NaN"));
        assert!(why("loss", Some(tensor(&[1.0, 2.0], &[2, 1]))).contains("[2, 1]"));
        // More rows than are expected are right in gradients alone.
        let taller = tensor(&[1.0, 2.0, 7.0, 8.0], &[2, 2]);
        assert!(why("token_embeds", Some(taller.clone())).contains("[2, 2]"));
        assert_eq!(compare("grad.x", &expected, Some(&taller), 0.0, 0.0).max_abs, 0.0);
        let nan = compare("loss", &tensor(&[f32::NAN], &[1]), Some(&tensor(&[1.0], &[1])), 1e3, 0.0);
        assert!(!nan.passed && nan.max_abs == f64::INFINITY && nan.relative == f64::INFINITY);
    }
}
