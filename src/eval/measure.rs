//! What a model says of a table's rows: scores, retrieval, sparsity, and heat maps where findings are boxed.

use super::localisation::{Case, PatchMap};
use super::retrieval::{Retrieval, retrieval};
use super::sparsity::{OfPair, RankOrdered, Sparsity, SparsityMeter, rank_ordered, sparsity};
use super::zero_shot::{Query, Rule, scores};
use crate::data::{Boxes, Loader, LoaderOptions, Prompts, Row};
use crate::error::{At, Error, Result};
use crate::image;
use crate::loss::{TierOptions, similarities};
use crate::models::dual_encoder::Embeddings;
use crate::pipeline::{Network, Pipeline};
use crate::tensor::Tensor;

/// What to measure with.
pub struct Options<'a> {
    /// Labels to score, each by its prompts. A classifier scores its own labels and needs none.
    pub prompts: Option<&'a Prompts>,
    /// Boxes of findings, for labels with prompts.
    pub boxes: Option<&'a Boxes>,
    /// Scores are probabilities, as `tier classify` gives them: the softmax over a label's two similarities at the model's logit scale (the
    /// logistic function of a classifier's logit). Else Z, or the logit.
    pub softmax: bool,
    /// Mask, eps and temperature of the entropies.
    pub tier: TierOptions,
}

/// What was measured.
#[derive(Default)]
pub struct Measured {
    /// Names of the labels scored.
    pub labels: Vec<String>,
    /// Per label, per row.
    pub scores: Vec<Vec<f64>>,
    /// Text for image, over rows with a text.
    pub retrieval: Option<Retrieval>,
    /// Of rows with a text.
    pub sparsity: Option<Sparsity>,
    /// What the rows gave to it, one by one; an ensemble has none.
    pub sparsity_pairs: Vec<OfPair>,
    /// Patch similarities to the whole text, of rows with one.
    pub rank_ordered: Option<RankOrdered>,
    /// One per row and boxed label.
    pub cases: Vec<Case>,
    /// What is missing, and why, one line each.
    pub notes: Vec<String>,
}

/// Queries of prompts, label by label.
pub fn queries(pipeline: &Pipeline, prompts: &Prompts) -> Result<Vec<Query>> {
    let mut rows = pipeline.embed_whole_texts(&prompts.texts())?.into_iter();
    let mut take = |n: usize| rows.by_ref().take(n).collect::<Vec<_>>();
    prompts
        .0
        .iter()
        .map(|p| {
            let [positive, negative] = [take(p.positive.len()), take(p.negative.len())];
            let width = positive.first().map_or(0, Vec::len);
            Query::new(&positive.concat(), &negative.concat(), width)
                .map_err(|e| Error::new(format!("label {}: {e}", p.label)))
        })
        .collect()
}

/// A loader of rows as the model sees them, in order and unchanged.
///
/// # Errors
/// If the model's preprocessing cannot be used.
pub fn loader(pipeline: &Pipeline, rows: &[&Row], batch: usize, workers: usize, cache_mib: usize) -> Result<Loader> {
    let options = LoaderOptions::evaluation(pipeline.preprocess.clone(), batch, workers);
    let options = LoaderOptions { sixteen_bit: pipeline.sixteen_bit, cache_mib, ..options };
    Loader::new(rows.iter().map(|row| row.path()).collect(), options)
}

/// Measures a model on rows, which `loader` loads (see [`loader`]); `progress` hears how many are done.
///
/// # Errors
/// If an image cannot be read, its boxes do not fit it, or a prompt or text cannot be embedded.
pub fn measure(
    pipeline: &Pipeline,
    rows: &[&Row],
    loader: &Loader,
    options: &Options,
    progress: &dyn Fn(u64),
) -> Result<Measured> {
    let mut out = Measured::default();
    let mut done = 0;
    let planned = pipeline.planned();
    let scale = if let Network::Dual(model) = &pipeline.network { model.logit_scale.item().exp() } else { 1.0 };
    let rule = if options.softmax { Rule::Softmax { scale } } else { Rule::Difference };
    match &pipeline.network {
        Network::Classifier(model) => {
            out.labels.clone_from(&model.config().labels);
            out.scores = vec![Vec::new(); out.labels.len()];
            for batch in loader.epoch(0, 0) {
                let batch = batch?;
                pipeline.intact()?;
                let logits = planned.whole_images(&batch.views[0]).expect("a classifier says something of images");
                for row in crate::pipeline::rows(&logits) {
                    out.scores.iter_mut().zip(&row).for_each(|(scores, &x)| scores.push(rule.score(x.into())));
                }
                done += batch.rows.len() as u64;
                progress(done);
            }
        }
        Network::Dual(_) => {
            let queries = options.prompts.map(|p| queries(pipeline, p)).transpose()?.unwrap_or_default();
            let prompts = options.prompts.map_or(&[][..], |p| &p.0);
            out.labels = prompts.iter().map(|p| p.label.clone()).collect();
            out.scores = vec![Vec::new(); queries.len()];
            let mut pairs = Written::new(&options.tier);
            for batch in loader.epoch(0, 0) {
                let batch = batch?;
                pipeline.intact()?;
                let images = planned.encode_image(&batch.views[0]);
                for (all, one) in out.scores.iter_mut().zip(scores(&images.whole.to_vec::<f32>(), &queries, rule)) {
                    all.extend(one);
                }
                for (i, &row) in batch.rows.iter().enumerate() {
                    boxed(pipeline, rows[row], &images.parts.at(0, i), options, &queries, &mut out.cases)?;
                }
                pairs.add(pipeline, &batch.rows.iter().map(|&i| rows[i]).collect::<Vec<_>>(), &images)?;
                done += batch.rows.len() as u64;
                progress(done);
            }
            pairs.finish(&mut out).at(&pipeline.path)?;
        }
        Network::Image(_) | Network::Text(_) => return pipeline.dual().map(|_| out),
    }
    Ok(out)
}

/// Heat maps of a row's boxed findings: patch scores of the label's query.
fn boxed(
    pipeline: &Pipeline,
    row: &Row,
    patches: &Tensor,
    options: &Options,
    queries: &[Query],
    cases: &mut Vec<Case>,
) -> Result<()> {
    let (Some(boxes), Some(prompts)) = (options.boxes, options.prompts) else { return Ok(()) };
    let Some(annotations) = boxes.found(&row.image) else { return Ok(()) };
    let size = image::size(row.path())?;
    boxes.check(&row.image, size)?;
    for (prompt, query) in prompts.0.iter().zip(queries) {
        let own = annotations.iter().filter(|a| *a.label == *prompt.label);
        let own: Vec<[f64; 4]> = own.map(|a| a.bbox).collect();
        if own.is_empty() {
            continue;
        }
        cases.push(Case {
            label: prompt.label.clone(),
            image: row.image.clone(),
            group: row.group().to_owned(),
            map: heat(patches, query),
            crop: pipeline.preprocess.crop,
            boxes: own.iter().map(|&b| pipeline.preprocess.map_box(size, b)).collect(),
        });
    }
    Ok(())
}

/// Scores of an image's patches [P, d] (a square grid) for a query.
pub fn heat(patches: &Tensor, query: &Query) -> PatchMap {
    let scores = scores(&patches.to_vec::<f32>(), std::slice::from_ref(query), Rule::Difference).remove(0);
    let side = scores.len().isqrt();
    PatchMap { scores: scores.into_iter().map(|x| x as f32).collect(), height: side, width: side }
}

/// Rows with a text, as they come.
struct Written {
    images: Vec<Tensor>,
    texts: Vec<Tensor>,
    words: Vec<String>,
    patients: Vec<Option<String>>,
    meter: SparsityMeter,
    maps: Vec<Vec<f32>>,
}

impl Written {
    fn new(tier: &TierOptions) -> Self {
        Self {
            images: Vec::new(),
            texts: Vec::new(),
            words: Vec::new(),
            patients: Vec::new(),
            meter: SparsityMeter::new(tier),
            maps: Vec::new(),
        }
    }

    fn add(&mut self, pipeline: &Pipeline, rows: &[&Row], images: &Embeddings) -> Result<()> {
        let written: Vec<usize> = (0..rows.len()).filter(|&i| !rows[i].text.trim().is_empty()).collect();
        if written.is_empty() {
            return Ok(());
        }
        let texts: Vec<&str> = written.iter().map(|&i| rows[i].text.as_str()).collect();
        let patches = images.parts.dims()[1];
        let mut at = 0;
        for (tokens, embeddings) in pipeline.embed_texts(&texts)? {
            let count = tokens.ids.dims()[0];
            for k in 0..count {
                let i = written[at + k];
                let one = |x: &Tensor| x.narrow(0, k, 1);
                let parts = images.parts.narrow(0, i, 1);
                let s = similarities(&one(&embeddings.parts), &parts).to_vec::<f32>();
                self.meter.add(rows[i].group(), &s, &one(&tokens.mask).to_vec::<u8>(), patches);
                self.maps.push(similarities(&one(&embeddings.whole).unsqueeze(1), &parts).to_vec::<f32>());
                self.images.push(images.whole.narrow(0, i, 1).copied());
                self.texts.push(one(&embeddings.whole).copied());
                self.words.push(rows[i].text.trim().to_owned());
                self.patients.push(rows[i].patient.clone());
            }
            at += count;
        }
        Ok(())
    }

    fn finish(self, out: &mut Measured) -> Result<()> {
        if self.images.is_empty() {
            return Ok(());
        }
        let join = |parts: &[Tensor]| Tensor::concat(&parts.iter().collect::<Vec<_>>(), 0);
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let patients: Vec<Option<&str>> = self.patients.iter().map(Option::as_deref).collect();
        out.retrieval = retrieval(&join(&self.images), &join(&self.texts), &words, &patients)?;
        out.sparsity_pairs = self.meter.pairs();
        out.sparsity = sparsity(&out.sparsity_pairs);
        out.rank_ordered = rank_ordered(self.maps.iter().map(Vec::as_slice));
        Ok(())
    }
}
