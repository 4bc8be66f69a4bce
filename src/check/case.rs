//! A parity case: inputs, and what PyTorch computes from them with a checkpoint. One safetensors file, whose metadata says how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::inputs::{self, Inputs, float};
use crate::error::{At, Error, Result};
use crate::formats::Weights;
use crate::loss::TierOptions;
use crate::models::NetworkConfig;
use crate::tensor::Tensor;

/// A parity case.
#[derive(Debug)]
pub struct Case {
    /// Its file.
    pub path: PathBuf,
    /// What the model is asked about.
    pub inputs: Inputs,
    /// Whether batch norms go by the batch, and move their running statistics.
    pub train: bool,
    /// The objective, where there is one.
    pub objective: Option<TierOptions>,
    /// Steps of the optimiser, where there are some.
    pub adam: Option<Adam>,
    /// Norm of the whole gradient, where it is told.
    pub grad_norm: Option<f64>,
    /// What must come out, by name: `image_embeds`, `grad.NAME`, `after.NAME` and so on.
    pub expected: BTreeMap<String, Tensor>,
    /// What the file says of the model's ways beside that, for comparing: `global_image`, `text_uses_attention_mask`.
    pub said: BTreeMap<String, String>,
    /// Tensors that are neither given nor expected.
    pub ignored: Vec<String>,
    tolerances: Tolerances,
}

/// Steps of PyTorch's Adam, weight decay in the gradient, on the case's batch.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// How many.
    pub steps: usize,
    /// Learning rate.
    pub lr: f64,
    /// Of every parameter.
    pub weight_decay: f64,
}

#[derive(Debug)]
struct Tolerances {
    values: f64,
    entropies: f64,
    gradients: f64,
    adam: f64,
}

/// What the metadata of a case begins its format with.
const FORMAT: &str = "tier-parity/";

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// If the file is none, or its parts do not fit each other: named by tensor or key.
    pub fn open(path: &Path, map: bool) -> Result<Self> {
        Self::read(path, &Weights::open(path, map)?).at(path)
    }

    fn read(path: &Path, file: &Weights) -> Result<Self> {
        let metadata = Metadata(file.metadata());
        if !metadata.0.get("format").is_some_and(|format| format.starts_with(FORMAT)) {
            return Err(Error::new(format!("not a parity case: its metadata has no format {FORMAT}...")));
        }
        let (mut expected, mut ignored) = (BTreeMap::new(), Vec::new());
        for (name, _) in file.metas() {
            let short = name.strip_prefix("expect.").or_else(|| name.starts_with("after.").then_some(name));
            match short {
                Some(short) => {
                    expected.insert(short.to_owned(), float(file, name)?);
                }
                None if inputs::NAMES.contains(&name) => {}
                None => ignored.push(name.to_owned()),
            }
        }
        if expected.is_empty() {
            return Err(Error::new("nothing to verify: no tensor expect.* or after.*"));
        }
        let objective = match metadata.0.get("lambda_p") {
            None => None,
            Some(_) => Some(TierOptions {
                lambda_p: metadata.finite("lambda_p")?,
                lambda_t: metadata.finite("lambda_t")?,
                eps: metadata.number("eps")?,
                mask_padding: metadata.choice("mask_padding", ["false", "true"])? == 1,
                ..TierOptions::default()
            }),
        };
        let steps = expected.get("adam.losses").map_or(0, Tensor::numel);
        let adam = match steps {
            0 => None,
            _ if steps != metadata.number::<usize>("adam_steps")? => {
                return Err(Error::new(format!("expect.adam.losses has {steps} losses, adam_steps says otherwise")));
            }
            _ => Some(Adam { steps, lr: metadata.number("lr")?, weight_decay: metadata.number("weight_decay")? }),
        };
        let values = metadata.number("rtol")?;
        // A case that does not say another tolerance has nothing that it is for.
        let tolerance = |key: &str| metadata.0.get(key).map_or(Ok(values), |_| metadata.number(key));
        let tolerances = Tolerances {
            values,
            entropies: tolerance("rtol_entropy")?,
            gradients: tolerance("rtol_grad")?,
            adam: tolerance("rtol_adam")?,
        };
        let grad_norm = metadata.0.get("grad_norm").map(|_| metadata.number::<f64>("grad_norm")).transpose()?;
        let said = ["global_image", "text_uses_attention_mask"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), metadata.0.get(key)?.clone())));
        let case = Self {
            path: path.to_path_buf(),
            inputs: Inputs::read(file)?,
            train: metadata.choice("train_mode", ["eval", "train"])? == 1,
            objective,
            adam,
            grad_norm: grad_norm.filter(|&norm| norm > 0.0),
            expected,
            said: said.collect(),
            ignored,
            tolerances,
        };
        case.check()?;
        Ok(case)
    }

    fn check(&self) -> Result<()> {
        let Inputs { pixels, texts } = &self.inputs;
        let counts = [pixels.as_ref(), texts.as_ref().map(|t| &t[0])].map(|t| t.map(|t| t.dims()[0]));
        if let [Some(images), Some(texts)] = counts
            && images != texts
        {
            return Err(Error::new(format!("{images} images and {texts} texts: a case has pairs")));
        }
        if self.objective.is_some() && counts.contains(&None) {
            return Err(Error::new("an objective (lambda_p) needs pixel_values and input_ids"));
        }
        if self.objective.is_none() && (self.adam.is_some() || self.expected.keys().any(|k| k.starts_with("grad."))) {
            return Err(Error::new("gradients or optimiser steps, but no objective: lambda_p is missing"));
        }
        Ok(())
    }

    /// Checks the case against a model's sizes.
    ///
    /// # Errors
    /// Saying what does not fit.
    pub fn fits(&self, config: &NetworkConfig) -> Result<()> {
        self.inputs.fits(config, self.train)
    }

    /// How far off an expected tensor may be.
    pub fn tolerance(&self, name: &str) -> f64 {
        let t = &self.tolerances;
        if name.starts_with("grad") {
            t.gradients
        } else if name.starts_with("after.") {
            t.values
        } else if name.contains("entropy") {
            t.entropies
        } else if name.starts_with("adam.") {
            t.adam
        } else {
            t.values
        }
    }
}

struct Metadata<'a>(&'a BTreeMap<String, String>);

impl Metadata<'_> {
    fn text(&self, key: &str) -> Result<&str> {
        let text = self.0.get(key).ok_or_else(|| Error::new(format!("its metadata has no {key}")))?;
        Ok(text.trim())
    }

    fn finite(&self, key: &str) -> Result<f64> {
        let text = self.text(key)?;
        let value = text.parse().ok().filter(|x: &f64| x.is_finite());
        value.ok_or_else(|| Error::new(format!("metadata {key}: {text:?} is not a number")))
    }

    /// A number that is not below 0.
    fn number<T: FromStr>(&self, key: &str) -> Result<T> {
        let value = if self.finite(key)? >= 0.0 { self.text(key)?.parse().ok() } else { None };
        value.ok_or_else(|| Error::new(format!("metadata {key}: {:?} is not what it can be", self.0[key])))
    }

    fn choice(&self, key: &str, choices: [&str; 2]) -> Result<usize> {
        let text = self.text(key)?;
        let wrong = || Error::new(format!("metadata {key}: {text:?} is neither {} nor {}", choices[0], choices[1]));
        choices.iter().position(|choice| choice.eq_ignore_ascii_case(text)).ok_or_else(wrong)
    }
}
