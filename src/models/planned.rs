//! A network's inference with a plan for each shape that comes again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use kernels_cpu::par;

use super::dual_encoder::Embeddings;
use super::image_tower::ImageTowerConfig;
use super::network::{Network, NetworkConfig, Said};
use crate::buffer::counted;
use crate::dtype::DType;
use crate::layout::Dims;
use crate::op::Meta;
use crate::plan::{PackedFiles, Packs, Plan};
use crate::profile::Cost;
use crate::tensor::Tensor;

/// Most shapes that have a plan at once; the one that was not used longest goes first.
const MOST: usize = 16;
/// With larger maps than of so many numbers each image is computed by all threads: those of two would not stay in a cache that threads share.
const LARGE_MAP: usize = 1 << 21;

/// How the weights of matrix products are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Held {
    /// As `cached` where packed weights are kept, else as `lean` for the first batch and as `fast` from the second on.
    #[default]
    Auto,
    /// Read where they lie: the least memory.
    Lean,
    /// Packed in memory before the first batch: the quickest for many, and as much memory again as they take.
    Fast,
    /// Packed in a file, which is mapped instead of them; made where it is missing, beside the model or in the user's folder of caches.
    Cached,
}

/// When a network is computed by a plan with packed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Planning {
    /// From the second batch of a shape on.
    #[default]
    Later,
    /// Never.
    Never,
    /// From the first batch on.
    AtOnce,
}

/// A network for inference: what is not computed as it stands is computed by a [`Plan`] for each shape of inputs, whose packed parameters take about as
/// much memory again as the network's, or are in [`PackedFiles`]. The bits are the same.
pub struct Planned<'n> {
    network: &'n Network,
    /// Of images that become maps, which for many of them would not stay in the caches: numbers of the largest for each pixel.
    maps: Option<f64>,
    planning: Planning,
    state: Mutex<State>,
}

/// What is computed of inputs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    All,
    Whole,
}

struct State {
    packs: Packs,
    /// Last used last.
    shapes: Vec<Shape>,
}

struct Shape {
    asked: Asked,
    inputs: Vec<Meta>,
    /// Its plan, and whether the network says an output, and embeddings.
    planned: Option<(Arc<Plan>, [bool; 2])>,
}

impl<'n> Planned<'n> {
    /// Nothing is planned yet.
    pub fn new(network: &'n Network) -> Self {
        Self::with(network, Planning::Later, Arc::default())
    }

    /// As [`Planned::new`], with what files hold of the network's packed weights.
    pub fn with(network: &'n Network, planning: Planning, files: Arc<PackedFiles>) -> Self {
        let state = State { packs: Packs::with(files), shapes: Vec::new() };
        let maps = match NetworkConfig::of(network).vision() {
            Some(ImageTowerConfig::Resnet(config)) => Some(config.numbers_per_pixel()),
            _ => None,
        };
        Self { network, maps, planning, state: Mutex::new(state) }
    }

    /// Computes all images at once, as a device wants it.
    pub fn whole(self) -> Self {
        Self { maps: None, ..self }
    }

    /// As [`Network::say_images`].
    pub fn say_images(&self, pixels: &Tensor) -> Option<Said> {
        self.say(Asked::All, std::slice::from_ref(pixels), &|x| self.network.say_images(&x[0]))
    }

    /// As [`Network::say_texts`].
    pub fn say_texts(&self, ids: &Tensor, mask: &Tensor) -> Option<Said> {
        self.say(Asked::All, &[ids.clone(), mask.clone()], &|x| self.network.say_texts(&x[0], &x[1]))
    }

    /// As [`Network::whole_images`].
    pub fn whole_images(&self, pixels: &Tensor) -> Option<Tensor> {
        let whole = |x: &[Tensor]| Some((Some(self.network.whole_images(&x[0])?), None));
        self.say(Asked::Whole, std::slice::from_ref(pixels), &whole)?.0
    }

    /// As [`Network::whole_texts`].
    pub fn whole_texts(&self, ids: &Tensor, mask: &Tensor) -> Option<Tensor> {
        let whole = |x: &[Tensor]| Some((Some(self.network.whole_texts(&x[0], &x[1])?), None));
        self.say(Asked::Whole, &[ids.clone(), mask.clone()], &whole)?.0
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

    /// The matrices of products with images of these dims and texts of those (ids [n, T]), where they are given, in the order in which they are read.
    pub fn matrices(network: &'n Network, pixels: Option<Dims>, texts: Option<Dims>) -> Vec<Tensor> {
        let planned = Self::with(network, Planning::AtOnce, Arc::default());
        par::enter(|| {
            counted(|| {
                pixels.map(|dims| planned.say_images(&Tensor::zeros(dims, DType::F32)));
                texts.map(|dims| {
                    planned.say_texts(&Tensor::zeros(dims, DType::I64), &Tensor::full(dims, 1.0, DType::U8))
                });
            })
        });
        let state = planned.state.into_inner().unwrap_or_else(|e| e.into_inner());
        let mut seen = HashSet::new();
        let new = |matrix: &&Tensor| seen.insert((matrix.buffer().id(), *matrix.layout()));
        state.packs.wanted().iter().filter(new).cloned().collect()
    }

    /// What each step of the plan for these inputs takes that was last run, which are pixels, or ids and mask. `None`: there is no plan for them yet.
    pub fn profile(&self, x: &[Tensor]) -> Option<Vec<Cost>> {
        self.parts(x).iter().map(|x| self.profile_part(x)).collect::<Option<Vec<_>>>().map(|costs| costs.concat())
    }

    fn profile_part(&self, x: &[Tensor]) -> Option<Vec<Cost>> {
        let inputs: Vec<Meta> = x.iter().map(Tensor::meta).collect();
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let (plan, _) = state.shapes.iter().rfind(|shape| shape.inputs == inputs)?.planned.clone()?;
        drop(state);
        Some(plan.profile(x).1)
    }

    /// What is computed at once: images that become maps a few at a time on the CPU, one for each thread, or one by all of them; else all.
    fn parts(&self, x: &[Tensor]) -> Vec<Vec<Tensor>> {
        let (Some(maps), &[n, _, h, w]) = (self.maps, &x[0].dims()[..]) else { return vec![x.to_vec()] };
        let together = if maps * (h * w) as f64 > LARGE_MAP as f64 { 1 } else { par::threads() };
        if n <= together {
            return vec![x.to_vec()];
        }
        let part = |first: usize| x.iter().map(|x| x.narrow(0, first, together.min(n - first))).collect();
        (0..n).step_by(together).map(part).collect()
    }

    fn say(&self, asked: Asked, x: &[Tensor], eager: &(dyn Fn(&[Tensor]) -> Option<Said> + Sync)) -> Option<Said> {
        let parts = self.parts(x);
        if let [x] = &parts[..] {
            return self.say_part(asked, x, eager);
        }
        let said: Vec<Said> = parts.iter().map(|x| self.say_part(asked, x, eager)).collect::<Option<_>>()?;
        let says = said.first().map(|(output, embeddings)| [output.is_some(), embeddings.is_some()])?;
        let lists: Vec<Vec<Tensor>> = said.into_iter().map(|said| listed(Some(said))).collect();
        let whole = |i: usize| Tensor::concat(&lists.iter().map(|list| &list[i]).collect::<Vec<_>>(), 0);
        Some(told((0..lists[0].len()).map(whole).collect(), says))
    }

    fn say_part(&self, asked: Asked, x: &[Tensor], eager: &(dyn Fn(&[Tensor]) -> Option<Said> + Sync)) -> Option<Said> {
        let inputs: Vec<Meta> = x.iter().map(Tensor::meta).collect();
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let known = state.shapes.iter().position(|shape| shape.asked == asked && shape.inputs == inputs);
        let known = known.map(|at| state.shapes.remove(at));
        let as_it_stands = match self.planning {
            Planning::Later => known.is_none(),
            Planning::Never => true,
            Planning::AtOnce => false,
        };
        if as_it_stands {
            state.remember(Shape { asked, inputs, planned: None });
            drop(state);
            return par::enter(|| eager(x));
        }
        let (plan, says) = match known.and_then(|shape| shape.planned) {
            Some(planned) => planned,
            None => {
                let mut says = None;
                let plan = Plan::sharing(&mut state.packs, x, |x| {
                    let said = eager(x);
                    says = said.as_ref().map(|(output, embeddings)| [output.is_some(), embeddings.is_some()]);
                    listed(said)
                });
                (Arc::new(plan), says?)
            }
        };
        state.remember(Shape { asked, inputs, planned: Some((plan.clone(), says)) });
        drop(state);
        Some(told(plan.run(x), says))
    }
}

impl State {
    fn remember(&mut self, shape: Shape) {
        if self.shapes.len() == MOST {
            self.shapes.remove(0);
        }
        self.shapes.push(shape);
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
    fn images_that_become_maps_are_computed_a_few_at_a_time_but_on_a_device() {
        let resnet = ResnetConfig { channels: 1, depths: vec![1], base: 8, ..ResnetConfig::default() };
        let config = DualEncoderConfig { vision: resnet.into(), joint: 6, ..DualEncoderConfig::default() };
        let config = NetworkConfig::TiergradDualEncoder(config);
        let network = Network::new(&Source::drawn(0, DType::F32).params(), &config).unwrap();
        let together = par::threads();
        let pixels = Tensor::zeros([2 * together, 1, 8, 8], DType::F32);
        let planned = || Planned::with(&network, Planning::Never, Arc::default());
        // 8 channels on half of the rows and columns, then 32 on a fourth.
        assert_eq!(planned().maps, Some(2.0));
        let large = Planned { maps: Some(1e6), ..planned() };
        for (planned, at_once) in [(planned(), together), (large, 1), (planned().whole(), 2 * together)] {
            planned.say_images(&pixels).unwrap();
            let shapes = planned.state.into_inner().unwrap().shapes;
            assert!(!shapes.is_empty() && shapes.iter().all(|shape| shape.inputs[0].dims[0] == at_once));
        }
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
        let with_class_token = VitConfig { class_token: true, ..vit.clone() };
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
                vision: with_class_token.clone().into(),
                text: clip(WholeText::First(3)).into(),
                global_text: Some(GlobalText::Token),
                ..dual.clone()
            },
            DualEncoderConfig {
                vision: with_class_token.into(),
                visual_projection: ImageProjectionKind::Projector,
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
            for planning in [Planning::Later, Planning::Never, Planning::AtOnce] {
                let planned = Planned::with(&network, planning, Arc::default());
                let mut rng = Rng::new(5, 0);
                for round in 0..4 {
                    // The more are computed in parts, and a part that is not full, where images become maps.
                    for (n, side) in [(2, 8), (2, 16), (1 + 2 * par::threads(), 8)] {
                        let pixels = Tensor::randn([n, 1, side, side], DType::F32, &mut rng);
                        assert_eq!(
                            bits(planned.say_images(&pixels)),
                            bits(network.say_images(&pixels)),
                            "{i}, round {round}"
                        );
                        let whole = planned.whole_images(&pixels).unwrap();
                        assert_eq!(whole.to_vec::<f32>(), planned.encode_image(&pixels).whole.to_vec::<f32>(), "{i}");
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
                        let whole = planned.whole_texts(&ids, &mask).unwrap();
                        assert_eq!(
                            whole.to_vec::<f32>(),
                            planned.encode_text(&ids, &mask).whole.to_vec::<f32>(),
                            "{i}"
                        );
                    }
                }
                let profile = planned.profile(&[Tensor::zeros([2, 1, 8, 8], DType::F32)]);
                assert!(profile.is_some_and(|costs| !costs.is_empty()) == (planning != Planning::Never));
                assert!(planned.profile(&[Tensor::zeros([2, 1, 12, 12], DType::F32)]).is_none());
            }
        }
    }
}
