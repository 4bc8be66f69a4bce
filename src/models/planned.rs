//! A network's inference with a plan for each shape that comes again.

use std::sync::{Arc, Mutex};

use kernels_cpu::par;

use super::dual_encoder::Embeddings;
use super::network::{Network, Said};
use crate::op::Meta;
use crate::plan::{Packs, Plan};
use crate::profile::Cost;
use crate::tensor::Tensor;

/// Most shapes that have a plan at once; the one that was not used longest goes first.
const MOST: usize = 16;

/// A network for inference. The first time that inputs of a shape come they are computed as they are; from the second time on by a
/// [`Plan`], whose packed parameters take about as much memory again as the network's. The bits are the same.
pub struct Planned<'n> {
    network: &'n Network,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    packs: Packs,
    /// Last used last.
    shapes: Vec<Shape>,
}

struct Shape {
    inputs: Vec<Meta>,
    plan: Option<Arc<Plan>>,
    /// Whether the network says an output, and embeddings.
    says: [bool; 2],
}

impl<'n> Planned<'n> {
    /// Nothing is planned yet.
    pub fn new(network: &'n Network) -> Self {
        Self { network, state: Mutex::default() }
    }

    /// As [`Network::say_images`].
    pub fn say_images(&self, pixels: &Tensor) -> Option<Said> {
        self.say(std::slice::from_ref(pixels), &|x| self.network.say_images(&x[0]))
    }

    /// As [`Network::say_texts`].
    pub fn say_texts(&self, ids: &Tensor, mask: &Tensor) -> Option<Said> {
        self.say(&[ids.clone(), mask.clone()], &|x| self.network.say_texts(&x[0], &x[1]))
    }

    /// As [`DualEncoder::encode_image`](super::DualEncoder::encode_image).
    ///
    /// # Panics
    /// If the network has no joint space.
    pub fn encode_image(&self, pixels: &Tensor) -> Embeddings {
        self.say_images(pixels)
            .and_then(|said| said.1)
            .expect("a network with a joint space, which the caller has seen")
    }

    /// As [`DualEncoder::encode_text`](super::DualEncoder::encode_text).
    ///
    /// # Panics
    /// If the network has no joint space or knows no texts.
    pub fn encode_text(&self, ids: &Tensor, mask: &Tensor) -> Embeddings {
        self.say_texts(ids, mask)
            .and_then(|said| said.1)
            .expect("a network with a joint space, which the caller has seen")
    }

    /// As [`Classifier::forward`](super::Classifier::forward).
    ///
    /// # Panics
    /// If the network has no output of its own.
    pub fn output(&self, pixels: &Tensor) -> Tensor {
        self.say_images(pixels).and_then(|said| said.0).expect("a network with an output, which the caller has seen")
    }

    /// What each step of the plan for these inputs takes, which are pixels, or ids and mask. `None`: there is no plan for them yet.
    pub fn profile(&self, x: &[Tensor]) -> Option<Vec<Cost>> {
        let inputs: Vec<Meta> = x.iter().map(Tensor::meta).collect();
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let plan = state.shapes.iter().find(|shape| shape.inputs == inputs)?.plan.clone()?;
        drop(state);
        Some(plan.profile(x).1)
    }

    fn say(&self, x: &[Tensor], eager: &(dyn Fn(&[Tensor]) -> Option<Said> + Sync)) -> Option<Said> {
        let inputs: Vec<Meta> = x.iter().map(Tensor::meta).collect();
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let Some(at) = state.shapes.iter().position(|shape| shape.inputs == inputs) else {
            drop(state);
            let said = par::enter(|| eager(x))?;
            let says = [said.0.is_some(), said.1.is_some()];
            let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
            if state.shapes.len() == MOST {
                state.shapes.remove(0);
            }
            state.shapes.push(Shape { inputs, plan: None, says });
            return Some(said);
        };
        let mut shape = state.shapes.remove(at);
        let says = shape.says;
        if let Some(plan) = shape.plan.clone() {
            state.shapes.push(shape);
            drop(state);
            return Some(told(plan.run(x), says));
        }
        let (plan, results) = Plan::sharing(&mut state.packs, x, |x| listed(eager(x)));
        shape.plan = Some(Arc::new(plan));
        state.shapes.push(shape);
        Some(told(results, says))
    }
}

/// What was said as one list.
fn listed(said: Option<Said>) -> Vec<Tensor> {
    let (output, embeddings) = said.unwrap_or_default();
    output.into_iter().chain(embeddings.into_iter().flat_map(|e| [e.whole, e.parts])).collect()
}

/// And back.
fn told(list: Vec<Tensor>, [output, embeddings]: [bool; 2]) -> Said {
    let mut list = list.into_iter();
    let output = output.then(|| list.next()).flatten();
    let embeddings = match (embeddings, list.next(), list.next()) {
        (true, Some(whole), Some(parts)) => Some(Embeddings { whole, parts }),
        _ => None,
    };
    (output, embeddings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::models::clip_text::{TextConfig, WholeText};
    use crate::models::resnet::ResnetConfig;
    use crate::models::vit::VitConfig;
    use crate::models::{DualEncoderConfig, GlobalText, ImageProjectionKind, NetworkConfig};
    use crate::nn::{ProjectionKind, Source};
    use crate::rng::Rng;

    fn bits(said: Option<Said>) -> Vec<Vec<f32>> {
        listed(said).iter().map(Tensor::to_vec).collect()
    }

    #[test]
    fn every_call_has_the_bits_of_the_network() {
        let vit = VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 8,
            depth: 2,
            heads: 2,
            channels: 1,
            ..VitConfig::default()
        };
        let resnet = ResnetConfig { channels: 1, depths: vec![1, 1], base: 8, ..ResnetConfig::default() };
        let bert = r#"{"vocabulary": 9, "max_length": 6, "width": 8, "depth": 2, "heads": 2, "mlp": 16}"#;
        let clip = |whole| TextConfig {
            vocabulary: 9,
            max_length: 6,
            width: 8,
            depth: 2,
            heads: 2,
            whole,
            ..TextConfig::default()
        };
        let dual = DualEncoderConfig { joint: 6, ..DualEncoderConfig::default() };
        for (i, config) in [
            DualEncoderConfig { vision: vit.clone().into(), text: clip(WholeText::LargestId).into(), ..dual.clone() },
            DualEncoderConfig {
                vision: resnet.into(),
                visual_projection: ImageProjectionKind::Projector,
                text: serde_json::from_str::<crate::models::bert::BertConfig>(bert).unwrap().into(),
                text_projection: ProjectionKind::Head,
                global_text: Some(GlobalText::Token),
                ..dual.clone()
            },
            DualEncoderConfig {
                vision: vit.clone().into(),
                text: clip(WholeText::First(3)).into(),
                global_text: Some(GlobalText::Token),
                ..dual.clone()
            },
            DualEncoderConfig {
                vision: vit.into(),
                text: clip(WholeText::LastReal).into(),
                global_text: Some(GlobalText::Token),
                ..dual
            },
        ]
        .into_iter()
        .enumerate()
        {
            let config = NetworkConfig::TiergradDualEncoder(config);
            let network = Network::new(&Source::drawn(i as u64, DType::F32).params(), &config).unwrap();
            let planned = Planned::new(&network);
            let mut rng = Rng::new(5, 0);
            for round in 0..4 {
                for side in [8, 16] {
                    let pixels = Tensor::randn([2, 1, side, side], DType::F32, &mut rng);
                    assert_eq!(
                        bits(planned.say_images(&pixels)),
                        bits(network.say_images(&pixels)),
                        "{i}, round {round}"
                    );
                }
                for t in [6, 4] {
                    let ids: Vec<i64> = (0..2 * t).map(|_| rng.below(9) as i64).collect();
                    let real: Vec<u8> = (0..2 * t).map(|k| u8::from(k % t < 3)).collect();
                    let (ids, mask) = (Tensor::from_slice(&ids, [2, t]), Tensor::from_slice(&real, [2, t]));
                    assert_eq!(
                        bits(planned.say_texts(&ids, &mask)),
                        bits(network.say_texts(&ids, &mask)),
                        "{i}, round {round}"
                    );
                }
            }
            assert!(planned.profile(&[Tensor::zeros([2, 1, 8, 8], DType::F32)]).is_some_and(|costs| !costs.is_empty()));
            assert!(planned.profile(&[Tensor::zeros([3, 1, 8, 8], DType::F32)]).is_none());
        }
    }
}
