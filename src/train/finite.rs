//! What `train.check_finite` watches: pixels, loss, gradients and what a checkpoint would hold; and the words where one is not finite.

use super::step::Pairs;
use crate::data::Row;
use crate::error::Error;
use crate::finite::{Origin, is_finite};
use crate::nn::Module;
use crate::pipeline::Network;
use crate::tape::Grads;
use crate::tensor::Tensor;

/// Names in a message, at most.
const NAMED: usize = 8;

/// What is known where something is not finite.
pub(super) struct Trouble<'a> {
    /// The step that it stops.
    pub step: u64,
    /// What is not finite: "the loss", "the gradient".
    pub what: String,
    /// The batch.
    pub rows: &'a [&'a Row],
}

impl Trouble<'_> {
    /// The error: what, where it began, which samples.
    pub(super) fn error(&self, began: &str, samples: &[usize]) -> Error {
        let Self { step, what, rows } = self;
        let all = samples.is_empty();
        let chosen: Vec<&str> = if all {
            rows.iter().map(|row| row.image.as_str()).collect()
        } else {
            samples.iter().map(|&i| rows[i].image.as_str()).collect()
        };
        let of = if all { "its batch" } else { "the samples" };
        Error::new(format!(
            "step {step}: {what} not finite; {began}; {of}: {}. Training stops and the last checkpoint stays as it is. Lower schedule.lr, \
             or look at these samples; train.check_finite = false would go on",
            listed(&chosen)
        ))
    }
}

fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    let more = names.len() - shown.len();
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// The samples, first dimension of each, that have an element that is not finite.
pub(super) fn samples<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<usize> {
    let mut found = std::collections::BTreeSet::new();
    for t in tensors.into_iter().filter(|t| !is_finite(t)) {
        found.extend((0..t.dims()[0]).filter(|&i| !is_finite(&t.narrow(0, i, 1))));
    }
    found.into_iter().collect()
}

/// Parameters and buffers that are not finite, by name.
pub(super) fn parameters(network: &mut Network) -> Vec<String> {
    let mut names = Vec::new();
    network.visit_all("", &mut |name, t| {
        if !is_finite(t) {
            names.push(name.to_owned());
        }
    });
    names
}

/// Where it began, in words: a parameter, an op by the parameters it reads, or the parameters whose gradients show it.
pub(super) fn began(network: &mut Network, origin: Option<&Origin>, grads: Option<&Grads>) -> String {
    let broken = parameters(network);
    if !broken.is_empty() {
        return format!("it began in the weights themselves: {}", listed(&broken));
    }
    if let Some(origin) = origin {
        let mut nearest: Option<(usize, String)> = None;
        network.visit("", &mut |name, p| {
            if let Some(distance) = origin.distance(p)
                && nearest.as_ref().is_none_or(|(least, _)| distance < *least)
            {
                nearest = Some((distance, name.to_owned()));
            }
        });
        let place = match nearest {
            Some((0, name)) => format!(" of {name}"),
            Some((_, name)) => format!(", next to {name}"),
            None => String::new(),
        };
        let derivative = if origin.backward { "the derivative of " } else { "" };
        return format!("it began in {derivative}{}{place}, dims {:?}", origin.op, origin.dims);
    }
    let mut names = Vec::new();
    network.visit("", &mut |name, p| {
        if grads.and_then(|grads| grads.get(p)).is_some_and(|g| !is_finite(g)) {
            names.push(name.to_owned());
        }
    });
    if names.is_empty() {
        return "no number of it shows it, the sum of its squares does".to_owned();
    }
    format!("it shows in {}", listed(&names))
}

/// The samples whose embeddings are not finite.
pub(super) fn embedded(network: &Network, pairs: &Pairs) -> Vec<usize> {
    let Network::Dual(model) = network else { return Vec::new() };
    let views: Vec<_> = pairs.views.iter().map(|view| model.encode_image_train(view).0).collect();
    let texts = model.encode_text(&pairs.ids, &pairs.mask);
    samples(views.iter().chain([&texts]).flat_map(|e| [&e.whole, &e.parts]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::finite::watch;
    use crate::loss::TierOptions;
    use crate::models::clip_text::TextConfig;
    use crate::models::vit::VitConfig;
    use crate::models::{DualEncoder, DualEncoderConfig};
    use crate::rng::Rng;
    use crate::train::step;

    fn network() -> Network {
        let vision = VitConfig { image_size: 8, patch_size: 4, width: 8, depth: 2, heads: 2, ..VitConfig::default() };
        let text = TextConfig { vocabulary: 9, max_length: 4, width: 8, depth: 1, heads: 2, ..TextConfig::default() };
        let config =
            DualEncoderConfig { vision: vision.into(), text: text.into(), joint: 6, ..DualEncoderConfig::default() };
        let mut model = DualEncoder::init(&config, 1, DType::F32).unwrap();
        model.visit("", &mut |_, p| *p = p.trainable());
        Network::Dual(model)
    }

    fn pairs(scale: f64) -> Pairs {
        let view = Tensor::randn([3, 1, 8, 8], DType::F32, &mut Rng::new(1, 0)).affine(scale, 0.0);
        Pairs {
            views: vec![view],
            ids: Tensor::from_slice(&(0..12).map(|i| i * 5 % 9).collect::<Vec<i64>>(), [3, 4]),
            mask: Tensor::full([3, 4], 1.0, DType::U8),
            groups: Tensor::from_slice(&[0i64, 1, 2], [3]),
        }
    }

    fn set(network: &mut Network, of: &str, value: f32) {
        network.visit("", &mut |name, p| {
            if name == of {
                p.as_mut_slice::<f32>().unwrap()[1] = value;
            }
        });
    }

    fn origin(network: &mut Network, pairs: &Pairs) -> Option<Origin> {
        let Network::Dual(model) = network else { unreachable!() };
        watch(|| step::step(model, pairs, &TierOptions::default(), 0)).1
    }

    #[test]
    fn weights_ops_and_samples_are_named() {
        let mut network = network();
        assert!(origin(&mut network, &pairs(1.0)).is_none() && parameters(&mut network).is_empty());
        // A weight that overflows where it is used, and is finite itself.
        set(&mut network, "vision_model.encoder.layers.1.mlp.fc1.weight", 3e38);
        let found = origin(&mut network, &pairs(1.0));
        let words = began(&mut network, found.as_ref(), None);
        assert!(words.contains("linear of vision_model.encoder.layers.1.mlp.fc1.weight"), "{words}");
        assert_eq!(embedded(&network, &pairs(1.0)), [0, 1, 2]);
        set(&mut network, "vision_model.encoder.layers.1.mlp.fc1.weight", f32::NAN);
        let words = began(&mut network, None, None);
        assert!(words.contains("weights themselves: vision_model.encoder.layers.1.mlp.fc1.weight"), "{words}");
    }

    #[test]
    fn samples_are_those_with_an_element_that_is_not_finite() {
        let mut values = vec![0.5f32; 12];
        (values[4], values[11]) = (f32::NAN, f32::INFINITY);
        assert_eq!(samples([&Tensor::from_slice(&values, [6, 2]), &Tensor::zeros([6, 1], DType::F32)]), [2, 5]);
        assert!(samples([&pairs(1.0).views[0]]).is_empty());
        assert_eq!(listed(&["a"; 11]), "a, a, a, a, a, a, a, a and 3 more");
    }
}
