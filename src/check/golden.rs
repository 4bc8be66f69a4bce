//! Two small models, drawn from a seed, and what they compute in f64: numbers that every machine must reproduce.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::distance;
use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::gradcheck::Tolerance;
use crate::loss::{TierOptions, tier_loss};
use crate::models::bert::BertConfig;
use crate::models::clip_text::TextConfig;
use crate::models::resnet::{BlockKind, ResnetConfig};
use crate::models::vit::VitConfig;
use crate::models::{DualEncoder, DualEncoderConfig, GlobalText, ImageProjectionKind};
use crate::nn::{Activation, Module, ProjectionKind};
use crate::optim::{Optimiser, OptimiserConfig, Rule};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Of f64 against the numbers, relative to the largest of a row.
pub const DOUBLE: Tolerance = Tolerance { most: 1e-9, why: "other compilers, and sums in another order" };
/// Of f32 against the numbers.
pub const SINGLE: Tolerance =
    Tolerance { most: 2e-4, why: "roundings of f32 through two layers each way and four steps" };

/// What a model computes, by name.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// The numbers of every golden model, by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Golden(pub BTreeMap<String, Numbers>);

const NUMBERS: &str = include_str!("golden.json");

impl Golden {
    /// The numbers that are built in.
    pub fn embedded() -> Self {
        serde_json::from_str(NUMBERS).expect("a test reads them")
    }

    /// Numbers of a file, to see what a wrong one does.
    ///
    /// # Errors
    /// If it is not of their form.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).at(path)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::new(format!("not numbers of golden models: {e}")).at(path))
    }
}

/// A golden model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// A ViT and CLIP's text transformer.
    Vit,
    /// A residual network, its batch norms in train mode, and BERT.
    Resnet,
}

/// What a run of a model gives.
pub struct Run {
    /// For comparison with the golden ones.
    pub numbers: Numbers,
    /// Every parameter and buffer after the last step.
    pub parameters: Vec<f64>,
}

const PAIRS: usize = 8;
const TOKENS: usize = 12;
const WORDS: usize = 61;
const STEPS: usize = 4;

impl Model {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Vit, Self::Resnet];

    /// Its name among the numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vit => "vit + text transformer",
            Self::Resnet => "resnet + bert",
        }
    }

    fn config(self) -> DualEncoderConfig {
        let (width, heads) = (48, 4);
        match self {
            Self::Vit => DualEncoderConfig {
                vision: VitConfig {
                    image_size: 40,
                    patch_size: 8,
                    width,
                    depth: 2,
                    heads,
                    class_token: true,
                    activation: Activation::QuickGelu,
                    ..VitConfig::default()
                }
                .into(),
                text: TextConfig {
                    vocabulary: WORDS,
                    max_length: TOKENS,
                    width,
                    depth: 2,
                    heads,
                    ..TextConfig::default()
                }
                .into(),
                joint: 32,
                global_text: Some(GlobalText::Token),
                ..DualEncoderConfig::default()
            },
            Self::Resnet => DualEncoderConfig {
                vision: ResnetConfig {
                    image_size: 40,
                    channels: 1,
                    block: BlockKind::Bottleneck,
                    depths: vec![1, 1],
                    base: 8,
                    ..ResnetConfig::default()
                }
                .into(),
                text: BertConfig {
                    vocabulary: WORDS,
                    max_length: TOKENS,
                    width,
                    depth: 2,
                    heads,
                    mlp: 96,
                    token_types: 2,
                    pooler: false,
                    eps: 1e-12,
                    activation: Activation::Gelu,
                    padding: 0,
                }
                .into(),
                joint: 32,
                global_text: Some(GlobalText::MeanTokens),
                visual_projection: ImageProjectionKind::Projector,
                text_projection: ProjectionKind::Head,
                ..DualEncoderConfig::default()
            },
        }
    }

    /// Four steps of Adam on one batch with TIER's loss, in f32 or f64, from the same weights and inputs: those of f32.
    pub fn run(self, dtype: DType) -> Run {
        let mut model = DualEncoder::init(&self.config(), 7, DType::F32).expect("sizes that fit each other");
        model.visit_all("", &mut |_, t| *t = t.to_dtype(dtype));
        model.visit("", &mut |_, p| *p = p.trainable());
        let mut rng = Rng::new(7, 1);
        let pixels = Tensor::randn([PAIRS, 1, 40, 40], DType::F32, &mut rng).to_dtype(dtype);
        let ids: Vec<i64> = (0..PAIRS * TOKENS).map(|_| 1 + rng.below(WORDS - 1) as i64).collect();
        let real: Vec<u8> = (0..PAIRS * TOKENS).map(|k| u8::from(k % TOKENS < 4 + k / TOKENS)).collect();
        let ids: Vec<i64> = ids.iter().zip(&real).map(|(&id, &real)| id * i64::from(real)).collect();
        let (ids, mask) = (Tensor::from_slice(&ids, [PAIRS, TOKENS]), Tensor::from_slice(&real, [PAIRS, TOKENS]));
        let groups = Tensor::from_slice(&(0..PAIRS as i64).collect::<Vec<_>>(), [PAIRS]);
        let options = TierOptions { lambda_p: 2.0, lambda_t: 1.0, temperature: 0.5, ..TierOptions::default() };
        // Where a gradient is nothing but rounding, Adam's usual eps makes steps of it.
        let rule = OptimiserConfig { rule: Rule::Adam, eps: 1e-3, clip_norm: 0.0, ..OptimiserConfig::default() };
        let mut optimiser = Optimiser::new(rule);
        let mut numbers = Numbers::new();
        for _ in 0..STEPS {
            let (images, noted) = model.encode_image_train(&pixels);
            noted.apply(&mut model);
            let texts = model.encode_text(&ids, &mask);
            let first = |t: &Tensor| t.to_f64_vec()[..8].to_vec();
            let embeddings = [("image_embeds", &images.whole), ("patch_embeds", &images.parts)];
            for (name, t) in
                embeddings.into_iter().chain([("text_embeds", &texts.whole), ("token_embeds", &texts.parts)])
            {
                numbers.entry(name.to_owned()).or_insert_with(|| first(t));
            }
            let loss = tier_loss(&[images], &texts, &mask, &groups, &model.logit_scale, &options);
            drop(texts);
            let parts =
                [("clip", &loss.clip), ("patch_entropy", &loss.patch_entropy), ("token_entropy", &loss.token_entropy)];
            for (name, value) in parts.into_iter().chain([("loss", &loss.total)]) {
                numbers.entry(name.to_owned()).or_default().push(value.item());
            }
            // What still holds a part of the graph would hold the parameters.
            let grads = { loss }.total.backward();
            let norm = optimiser.step(&mut model, grads, 2e-3).expect("every parameter has a gradient");
            numbers.entry("gradient_norm".to_owned()).or_default().push(norm);
        }
        let mut parameters = Vec::new();
        model.visit_all("", &mut |_, t| parameters.extend(t.to_f64_vec()));
        let size = parameters.iter().map(|x| x * x).sum::<f64>().sqrt();
        numbers.insert("parameters_norm".to_owned(), vec![size]);
        Run { numbers, parameters }
    }
}

/// The largest difference of numbers from expected ones, relative to the largest of their row, and the row; infinite where rows differ.
pub fn difference(found: &Numbers, expected: &Numbers) -> (f64, String) {
    if !found.keys().eq(expected.keys()) {
        return (f64::INFINITY, "other names".to_owned());
    }
    let mut worst = (0.0, String::new());
    for ((name, found), expected) in found.iter().zip(expected.values()) {
        let off = distance::relative(found, expected, f64::MIN_POSITIVE);
        if off > worst.0 {
            worst = (off, name.clone());
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TIER_BLESS=1` writes the numbers instead: after a deliberate change of what a model computes.
    #[test]
    fn the_numbers_are_those_of_f64() {
        let computed: BTreeMap<String, Numbers> =
            Model::ALL.map(|model| (model.name().to_owned(), model.run(DType::F64).numbers)).into();
        if std::env::var_os("TIER_BLESS").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/golden.json");
            let text = serde_json::to_string(&computed).unwrap().replace("],", "],\n").replace("},", "},\n");
            std::fs::write(path, text + "\n").unwrap();
            return println!("written");
        }
        for (name, expected) in Golden::embedded().0 {
            let (off, row) = difference(&computed[&name], &expected);
            assert!(off < DOUBLE.most, "{name}: {row} is off by {off:e}");
        }
    }

    #[test]
    fn what_differs_is_told() {
        let numbers = Golden::embedded().0.remove(Model::Vit.name()).unwrap();
        assert_eq!(difference(&numbers, &numbers).0, 0.0);
        let changed = |change: &dyn Fn(&mut Numbers)| {
            let mut other = numbers.clone();
            change(&mut other);
            difference(&other, &numbers)
        };
        let (off, row) = changed(&|n| n.get_mut("loss").unwrap()[3] *= 1.001);
        assert!(row == "loss" && off > 1e-4 && off < 1.1e-3, "{row} {off}");
        assert_eq!(changed(&|n| n.get_mut("clip").unwrap()[0] = f64::NAN), (f64::INFINITY, "clip".to_owned()));
        assert_eq!(changed(&|n| n.get_mut("clip").unwrap().truncate(1)).0, f64::INFINITY);
        assert_eq!(changed(&|n| drop(n.remove("clip"))).0, f64::INFINITY);
    }
}
