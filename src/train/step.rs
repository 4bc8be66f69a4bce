//! Loss and gradients of one batch: at once, or in parts with the same result.

use crate::device;
use crate::error::{Error, Result};
use crate::loss::{self, TierOptions};
use crate::models::dual_encoder::Embeddings;
use crate::models::{Classifier, DualEncoder, Network};
use crate::nn::Noted;
use crate::op::apply;
use crate::ops::loss::BceWithLogits;
use crate::optim::Optimiser;
use crate::tape::{Grads, backward_with};
use crate::tensor::Tensor;

/// What one batch gives.
pub struct Step {
    /// The parts of the objective.
    pub values: Values,
    /// The gradient of the total.
    pub grads: Grads,
}

/// Values of the objective, as they are known.
pub enum Values {
    /// As numbers.
    Here(Parts),
    /// As what may be asked of a device, and is not waited for.
    There(Box<loss::Loss>),
}

impl Values {
    /// Whether what is minimised is finite, or not known yet.
    pub fn may_be_finite(&self) -> bool {
        if let Self::Here(parts) = self { parts.total.is_finite() } else { true }
    }

    /// What is minimised, where it may have to be waited for.
    pub fn total(&self) -> Option<&Tensor> {
        if let Self::There(loss) = self { Some(&loss.total) } else { None }
    }

    /// What [`Self::parts`] waits for.
    pub fn asked(&self) -> impl Iterator<Item = &Tensor> {
        let loss = if let Self::There(loss) = self { Some(loss) } else { None };
        loss.into_iter().flat_map(|loss| [&loss.total, &loss.clip, &loss.patch_entropy, &loss.token_entropy])
    }

    /// As numbers, which are waited for.
    pub fn parts(&self) -> Parts {
        match self {
            Self::Here(parts) => *parts,
            Self::There(loss) => {
                device::bring(&self.asked().collect::<Vec<_>>());
                let [total, clip, patch_entropy, token_entropy] =
                    [&loss.total, &loss.clip, &loss.patch_entropy, &loss.token_entropy].map(Tensor::item);
                Parts { total, clip, patch_entropy, token_entropy }
            }
        }
    }
}

/// Values of the objective.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// What is minimised.
    pub total: f64,
    /// Symmetric InfoNCE.
    pub clip: f64,
    /// Entropy over patches, in nats.
    pub patch_entropy: f64,
    /// Entropy over tokens, in nats.
    pub token_entropy: f64,
}

impl Parts {
    /// Every part times a factor.
    pub fn times(&self, factor: f64) -> Self {
        Self {
            total: self.total * factor,
            clip: self.clip * factor,
            patch_entropy: self.patch_entropy * factor,
            token_entropy: self.token_entropy * factor,
        }
    }

    /// Part by part.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            total: self.total + other.total,
            clip: self.clip + other.clip,
            patch_entropy: self.patch_entropy + other.patch_entropy,
            token_entropy: self.token_entropy + other.token_entropy,
        }
    }
}

/// What a model learns from in one batch.
pub enum Examples {
    /// Images and their texts.
    Paired(Pairs),
    /// Images with labels.
    Labelled {
        /// [n, c, h, w]
        pixels: Tensor,
        /// 0 or 1, [n, labels].
        targets: Tensor,
        /// Which targets are known, u8 [n, labels].
        known: Tensor,
    },
}

impl Examples {
    /// Loss and gradients: see [`step`] and [`supervised`].
    ///
    /// # Errors
    /// If the network is not one that learns from such examples.
    pub fn step(&self, network: &mut Network, options: &TierOptions, micro_batch: usize) -> Result<Step> {
        match (network, self) {
            (Network::Dual(model), Self::Paired(pairs)) => Ok(step(model, pairs, options, micro_batch)),
            (Network::Classifier(model), Self::Labelled { pixels, targets, known }) => {
                Ok(supervised(model, pixels, targets, known))
            }
            _ => Err(unfit()),
        }
    }

    /// The optimiser's step with the gradient of all of the batch, which is taken during backward: see [`Optimiser::step_in_backward`]. Gives the
    /// gradient's norm too.
    ///
    /// # Errors
    /// As [`Examples::step`], and as there.
    pub fn step_in_backward(
        &self,
        network: &mut Network,
        options: &TierOptions,
        optimiser: &mut Optimiser,
        lr: f64,
    ) -> Result<(Parts, f64)> {
        let (total, values) = match (&mut *network, self) {
            (Network::Dual(model), Self::Paired(pairs)) => objective(model, pairs, options),
            (Network::Classifier(model), Self::Labelled { pixels, targets, known }) => {
                supervised_objective(model, pixels, targets, known)
            }
            _ => return Err(unfit()),
        };
        let norm = optimiser.step_in_backward(network, total, lr)?;
        Ok((Values::There(Box::new(values)).parts(), norm))
    }
}

fn unfit() -> Error {
    Error::new("a network that does not learn from such examples")
}

/// A batch of pairs on its way into the model.
pub struct Pairs {
    /// Augmented views of the images, [n, c, h, w] each.
    pub views: Vec<Tensor>,
    /// Token ids, i64 [n, T].
    pub ids: Tensor,
    /// Real tokens, u8 [n, T].
    pub mask: Tensor,
    /// Texts that count as each other's, i64 `[n]`.
    pub groups: Tensor,
}

impl Pairs {
    fn len(&self) -> usize {
        self.ids.dims()[0]
    }

    fn narrow(&self, start: usize, len: usize) -> Self {
        let part = |x: &Tensor| x.narrow(0, start, len);
        Self {
            views: self.views.iter().map(part).collect(),
            ids: part(&self.ids),
            mask: part(&self.mask),
            groups: part(&self.groups),
        }
    }

    /// Embeddings with batch norms by the statistics of these pairs' own views, one by one, and those statistics.
    fn encode(&self, model: &DualEncoder) -> (Vec<Embeddings>, Embeddings, Vec<Noted>) {
        let (views, noted) = self.views.iter().map(|v| model.encode_image_train(v)).unzip();
        (views, model.encode_text(&self.ids, &self.mask), noted)
    }
}

/// The objective's values alone, with batch norms by their running statistics.
pub fn value(model: &DualEncoder, pairs: &Pairs, options: &TierOptions) -> Parts {
    let views: Vec<Embeddings> = pairs.views.iter().map(|v| model.encode_image(v)).collect();
    let texts = model.encode_text(&pairs.ids, &pairs.mask);
    let loss = loss::tier_loss(&views, &texts, &pairs.mask, &pairs.groups, &model.logit_scale, options);
    Values::There(Box::new(loss.detach())).parts()
}

/// Loss and gradients of a supervised batch: pixels [n, c, h, w], targets [n, labels] and which of them are known, u8 [n, labels]. Moves the
/// running statistics of batch norms.
pub fn supervised(model: &mut Classifier, pixels: &Tensor, targets: &Tensor, known: &Tensor) -> Step {
    let (loss, values) = supervised_objective(model, pixels, targets, known);
    Step { values: Values::There(Box::new(values)), grads: loss.backward() }
}

/// As [`objective`], of a supervised batch.
fn supervised_objective(
    model: &mut Classifier,
    pixels: &Tensor,
    targets: &Tensor,
    known: &Tensor,
) -> (Tensor, loss::Loss) {
    let (logits, noted) = model.forward_train(pixels);
    noted.apply(model);
    let loss = apply(BceWithLogits, &[&logits, targets, known]);
    let [total, clip] = [loss.detach(), loss.detach()];
    let [patch_entropy, token_entropy] = [0.0, 0.0].map(Tensor::scalar::<f32>);
    (loss, loss::Loss { total, clip, patch_entropy, token_entropy })
}

/// The objective of a batch, with its graph, and the values of its parts. Moves the running statistics of batch norms.
fn objective(model: &mut DualEncoder, pairs: &Pairs, options: &TierOptions) -> (Tensor, loss::Loss) {
    let (views, texts, noted) = pairs.encode(model);
    noted.into_iter().for_each(|noted| noted.apply(model));
    let loss = loss::tier_loss(&views, &texts, &pairs.mask, &pairs.groups, &model.logit_scale, options);
    let values = loss.detach();
    (loss.total, values)
}

/// Loss and gradients of a batch, `micro_batch` pairs at a time (0: all at once). Moves the running statistics of batch norms, once for each
/// view of each part.
///
/// A batch norm sees one part at a time: with micro batches its statistics are theirs, and loss and gradient are those of a model that
/// normalises so. Without batch norms they are the whole batch's whatever the parts.
pub fn step(model: &mut DualEncoder, pairs: &Pairs, options: &TierOptions, micro_batch: usize) -> Step {
    if micro_batch == 0 || micro_batch >= pairs.len() {
        let (total, values) = objective(model, pairs, options);
        return Step { values: Values::There(Box::new(values)), grads: total.backward() };
    }
    in_parts(model, pairs, options, micro_batch)
}

/// GradCache (Gao et al. 2021): embeddings of all parts first, without a graph; the contrastive loss and its gradient on those; then each
/// part once more with a graph, into which its rows of that gradient are sent. The penalty concerns single pairs, so each part has its own.
/// Running statistics move in the second pass alone; batch norms of both go by the part's own, so that both give the same embeddings.
fn in_parts(model: &mut DualEncoder, pairs: &Pairs, options: &TierOptions, micro_batch: usize) -> Step {
    let n = pairs.len();
    let chunks: Vec<(usize, usize)> =
        (0..n).step_by(micro_batch).map(|start| (start, micro_batch.min(n - start))).collect();
    let mut wholes: Vec<Vec<Tensor>> = vec![Vec::new(); pairs.views.len() + 1];
    for &(start, len) in &chunks {
        let (views, texts, _) = pairs.narrow(start, len).encode(model);
        for (all, one) in wholes.iter_mut().zip(views.iter().chain([&texts])) {
            all.push(one.whole.detach());
        }
    }
    let leaves: Vec<Tensor> =
        wholes.iter().map(|parts| Tensor::concat(&parts.iter().collect::<Vec<_>>(), 0).trainable()).collect();
    let (texts, views) = leaves.split_last().expect("views and texts");
    let clip = loss::contrast(&views.iter().collect::<Vec<_>>(), texts, &pairs.groups, &model.logit_scale);
    let value = clip.detach();
    let mut grads = clip.backward();
    let mut out = Parts { clip: value.item(), ..Parts::default() };
    let slopes: Vec<Option<Tensor>> = leaves.iter().map(|leaf| grads.take(leaf)).collect();

    let [over_patches, over_tokens] = options.weights();
    let tokens = |mask: &Tensor| options.counted(mask).to_vec::<u8>().iter().filter(|&&m| m != 0).count() as f64;
    let all_tokens = tokens(&pairs.mask).max(1.0);
    for &(start, len) in &chunks {
        let part = pairs.narrow(start, len);
        let (views, texts, noted) = part.encode(model);
        noted.into_iter().for_each(|noted| noted.apply(model));
        let patches: Vec<&Tensor> = views.iter().map(|v| &v.parts).collect();
        let [patch_entropy, token_entropy] = loss::entropies(&patches, &texts.parts, &part.mask, options);
        // The mean over tokens weighs parts by tokens, the mean over patches by pairs.
        let shares = [tokens(&part.mask) / all_tokens, len as f64 / n as f64];
        let values = [patch_entropy.detach(), token_entropy.detach()];
        let penalty = &patch_entropy * (shares[0] * over_patches) + &token_entropy * (shares[1] * over_tokens);
        let one = Tensor::full([], 1.0, penalty.dtype());
        let mut outputs = vec![(penalty, one)];
        drop((patch_entropy, token_entropy));
        for (whole, slope) in views.into_iter().map(|v| v.whole).chain([texts.whole]).zip(&slopes) {
            if let Some(slope) = slope {
                outputs.push((whole, slope.narrow(0, start, len)));
            }
        }
        grads.merge(backward_with(outputs));
        device::bring(&values.each_ref());
        out.patch_entropy += shares[0] * values[0].item();
        out.token_entropy += shares[1] * values[1].item();
    }
    out.total = out.clip + over_patches * out.patch_entropy + over_tokens * out.token_entropy;
    Step { values: Values::Here(out), grads }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::gradcheck::assert_close;
    use crate::models::clip_text::TextConfig;
    use crate::models::resnet::{BlockKind, ResnetConfig};
    use crate::models::vit::VitConfig;
    use crate::models::{ClassifierConfig, DualEncoderConfig, ImageProjectionKind};
    use crate::nn::Module;
    use crate::optim::OptimiserConfig;
    use crate::rng::Rng;
    use crate::tape::recomputing;

    #[test]
    fn parts_of_a_batch_give_the_gradient_of_the_whole() {
        let vision = VitConfig { image_size: 8, patch_size: 4, width: 12, depth: 1, heads: 2, ..VitConfig::default() };
        let mut config = DualEncoderConfig { vision: vision.into(), joint: 6, ..DualEncoderConfig::default() };
        let text = TextConfig { vocabulary: 9, max_length: 5, width: 8, depth: 1, heads: 2, ..TextConfig::default() };
        config.text = text.into();
        let mut model = DualEncoder::init(&config, 5, DType::F64).unwrap();
        model.visit("", &mut |_, p| *p = p.trainable());
        let mut rng = Rng::new(2, 0);
        let mut draw = || Tensor::randn([7, config.vision.channels(), 8, 8], DType::F64, &mut rng);
        let pairs = Pairs {
            views: vec![draw(), draw()],
            ids: Tensor::from_slice(&(0..35).map(|i| i * 5 % 9).collect::<Vec<i64>>(), [7, 5]),
            mask: Tensor::from_slice(&(0..35).map(|i| u8::from(i % 5 < 2 + i / 5 % 4)).collect::<Vec<_>>(), [7, 5]),
            groups: Tensor::from_slice(&[0i64, 1, 2, 1, 4, 0, 6], [7]),
        };
        for swap_lambdas in [false, true] {
            let options = TierOptions { lambda_p: 0.7, lambda_t: 0.4, swap_lambdas, ..TierOptions::default() };
            let whole = step(&mut model, &pairs, &options, 0);
            for micro_batch in [1, 3, 6] {
                let split = step(&mut model, &pairs, &options, micro_batch);
                let [a, b] = [&whole, &split].map(|step| step.values.parts());
                for (a, b) in [
                    (a.total, b.total),
                    (a.clip, b.clip),
                    (a.patch_entropy, b.patch_entropy),
                    (a.token_entropy, b.token_entropy),
                ] {
                    assert!((a - b).abs() < 1e-12, "{a} at once, {b} in parts");
                }
                model.visit("", &mut |name, p| {
                    assert_close(name, split.grads.get(p).unwrap(), whole.grads.get(p).unwrap(), 1e-11);
                });
            }
        }
    }

    #[test]
    fn a_step_in_backward_is_a_step_after_it() {
        let block = BlockKind::Basic;
        let vision = ResnetConfig { channels: 1, block, depths: vec![1, 1], base: 3, ..ResnetConfig::default() };
        let text = TextConfig { vocabulary: 9, max_length: 4, width: 8, depth: 2, heads: 2, ..TextConfig::default() };
        let vision: crate::models::ImageTowerConfig = vision.into();
        let dual =
            DualEncoderConfig { vision: vision.clone(), text: text.into(), joint: 6, ..DualEncoderConfig::default() };
        let classes = ClassifierConfig { vision, hidden: 4, labels: vec!["a".to_owned(), "b".to_owned()] };
        let mut rng = Rng::new(2, 0);
        let pixels = Tensor::randn([3, 1, 16, 12], DType::F32, &mut rng);
        let pairs = Pairs {
            views: vec![pixels.clone()],
            ids: Tensor::from_slice(&(0..12).map(|i| i * 5 % 9).collect::<Vec<i64>>(), [3, 4]),
            mask: Tensor::full([3, 4], 1.0, DType::U8),
            groups: Tensor::from_slice(&[0i64, 1, 2], [3]),
        };
        let targets = Tensor::from_slice(&[0f32, 1.0, 1.0, 0.0, 0.0, 0.0], [3, 2]);
        let labelled = Examples::Labelled { pixels, targets, known: Tensor::full([3, 2], 1.0, DType::U8) };
        let network = |paired: bool| {
            let mut network = match paired {
                true => Network::Dual(DualEncoder::init(&dual, 5, DType::F32).unwrap()),
                false => Network::Classifier(Classifier::init(&classes, 5, DType::F32).unwrap()),
            };
            network.visit("", &mut |_, p| *p = p.trainable());
            network
        };
        let options = TierOptions { lambda_p: 0.7, lambda_t: 0.4, ..TierOptions::default() };
        for (examples, recompute) in [(Examples::Paired(pairs), true), (labelled, false)] {
            let paired = matches!(examples, Examples::Paired(_));
            let run = |in_backward: bool| {
                let mut network = network(paired);
                let config = OptimiserConfig { clip_norm: 0.0, ..OptimiserConfig::default() };
                let mut optimiser = Optimiser::new(config);
                let losses = [(); 2].map(|()| {
                    recomputing(recompute, || {
                        if in_backward {
                            let stepped = examples.step_in_backward(&mut network, &options, &mut optimiser, 0.01);
                            return stepped.unwrap().0;
                        }
                        let step = examples.step(&mut network, &options, 0).unwrap();
                        optimiser.step(&mut network, step.grads, 0.01).unwrap();
                        step.values.parts()
                    })
                });
                let mut all = Vec::new();
                network.visit_all("", &mut |name, p| all.push((name.to_owned(), p.to_vec::<f32>())));
                (losses, all)
            };
            assert_eq!(run(true), run(false));
        }
    }

    #[test]
    fn batch_norms_see_parts_and_move_once_for_each() {
        let block = BlockKind::Basic;
        let vision = ResnetConfig { channels: 1, block, depths: vec![1, 1], base: 3, ..ResnetConfig::default() };
        let text = TextConfig { vocabulary: 9, max_length: 4, width: 8, depth: 1, heads: 2, ..TextConfig::default() };
        let config = DualEncoderConfig {
            vision: vision.into(),
            text: text.into(),
            joint: 6,
            visual_projection: ImageProjectionKind::Projector,
            ..DualEncoderConfig::default()
        };
        let mut rng = Rng::new(2, 0);
        let mut draw = || Tensor::randn([5, 1, 16, 12], DType::F64, &mut rng);
        let pairs = Pairs {
            views: vec![draw(), draw()],
            ids: Tensor::from_slice(&(0..20).map(|i| i * 5 % 9).collect::<Vec<i64>>(), [5, 4]),
            mask: Tensor::full([5, 4], 1.0, DType::U8),
            groups: Tensor::from_slice(&[0i64, 1, 2, 3, 4], [5]),
        };
        let options = TierOptions { lambda_p: 0.7, lambda_t: 0.4, ..TierOptions::default() };
        let model = || {
            let mut model = DualEncoder::init(&config, 5, DType::F64).unwrap();
            model.visit("", &mut |_, p| *p = p.trainable());
            model
        };
        for micro_batch in [0, 2] {
            let mut ours = model();
            let step = step(&mut ours, &pairs, &options, micro_batch);
            // The same with one graph: parts are encoded by their own statistics, their embeddings contrasted together.
            let mut plain = model();
            let chunks: &[(usize, usize)] = if micro_batch == 0 { &[(0, 5)] } else { &[(0, 2), (2, 2), (4, 1)] };
            let mut encoded = vec![Vec::new(); 2];
            for &(start, len) in chunks {
                for (view, all) in pairs.views.iter().zip(&mut encoded) {
                    let (embeddings, noted) = plain.encode_image_train(&view.narrow(0, start, len));
                    noted.apply(&mut plain);
                    all.push([embeddings.whole, embeddings.parts]);
                }
            }
            let joined =
                |all: &Vec<[Tensor; 2]>, i: usize| Tensor::concat(&all.iter().map(|e| &e[i]).collect::<Vec<_>>(), 0);
            let views: Vec<Embeddings> =
                encoded.iter().map(|all| Embeddings { whole: joined(all, 0), parts: joined(all, 1) }).collect();
            let texts = plain.encode_text(&pairs.ids, &pairs.mask);
            let loss = loss::tier_loss(&views, &texts, &pairs.mask, &pairs.groups, &plain.logit_scale, &options);
            assert!((step.values.parts().total - loss.total.item()).abs() < 1e-12);
            let grads = loss.total.backward();
            let tensors = |model: &mut DualEncoder, grads: &Grads| {
                let mut all = Vec::new();
                model.visit("", &mut |name, p| all.push((name.to_owned(), grads.get(p).unwrap().clone())));
                model.visit_buffers("", &mut |name, t| all.push((name.to_owned(), t.clone())));
                all
            };
            let pairs_of = tensors(&mut ours, &step.grads).into_iter().zip(tensors(&mut plain, &grads));
            for ((name, ours), (_, plain)) in pairs_of {
                assert_close(&name, &ours, &plain, 1e-9);
            }
        }
    }
}
