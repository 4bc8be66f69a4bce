//! Zero-shot scores: how much nearer an image is to a label's positive prompts than to its negative ones.

use kernels_cpu::par;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How two similarities become one score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Z = E·Qp - E·Qn, the paper's.
    #[default]
    Difference,
    /// The positive's share in a softmax over the two, their cosines times `scale`.
    Softmax {
        /// 1, or the model's exp(logit_scale).
        scale: f64,
    },
}

impl Rule {
    /// The score of a difference of similarities.
    pub fn score(self, difference: f64) -> f64 {
        match self {
            Self::Difference => difference,
            // A softmax over two is the logistic function of their difference.
            Self::Softmax { scale } => 1.0 / (1.0 + libm::exp(-scale * difference)),
        }
    }
}

/// What images are compared with for one label: Qp - Qn, each the normalised mean of its normalised prompt embeddings.
/// A label without negatives has Qn = 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    direction: Vec<f64>,
}

impl Query {
    /// The query of a label from its prompts' embeddings, rows of `width` numbers.
    ///
    /// # Errors
    /// No positive prompt, or embeddings that are not whole rows of finite numbers.
    pub fn new(positive: &[f32], negative: &[f32], width: usize) -> Result<Self> {
        if positive.is_empty() {
            return Err(Error::new("no positive prompt: every label needs at least one"));
        }
        let [positive, negative] = [("positive", positive), ("negative", negative)].map(|(polarity, rows)| {
            if width == 0 || rows.len() % width != 0 || rows.iter().any(|x| !x.is_finite()) {
                let numbers = rows.len();
                return Err(Error::new(format!(
                    "{polarity} prompts: {numbers} numbers are no finite embeddings of width {width}"
                )));
            }
            let mut sum = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                let norm = norm(row.iter().map(|&x| f64::from(x)));
                sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) / norm);
            }
            let length = norm(sum.iter().copied());
            Ok(sum.into_iter().map(|x| x / length).collect::<Vec<f64>>())
        });
        Ok(Self { direction: positive?.into_iter().zip(negative?).map(|(p, n)| p - n).collect() })
    }

    /// Width of the embeddings that it compares with.
    pub fn width(&self) -> usize {
        self.direction.len()
    }
}

/// Scores `[label][row]` of embeddings (images, or patches for a heat map): rows of the queries' width, normalised here.
///
/// # Panics
/// If the queries differ in width, or the numbers are no whole rows.
#[track_caller]
pub fn scores(embeddings: &[f32], queries: &[Query], rule: Rule) -> Vec<Vec<f64>> {
    let Some(width) = queries.first().map(Query::width) else { return Vec::new() };
    assert!(queries.iter().all(|q| q.width() == width), "queries of different widths");
    assert_eq!(embeddings.len() % width, 0, "{} numbers in rows of {width}", embeddings.len());
    let (rows, labels) = (embeddings.len() / width, queries.len());
    let mut by_row = vec![0.0; rows * labels];
    par::chunks_mut(&mut by_row, labels, (labels + 1) * width, |row, out| {
        let embedding = &embeddings[row * width..][..width];
        let norm = norm(embedding.iter().map(|&x| f64::from(x)));
        for (out, query) in out.iter_mut().zip(queries) {
            let dot: f64 = embedding.iter().zip(&query.direction).map(|(&e, q)| f64::from(e) * q).sum();
            *out = rule.score(dot / norm);
        }
    });
    (0..labels).map(|k| by_row.iter().skip(k).step_by(labels).copied().collect()).collect()
}

/// The ensemble of several models: the mean of their scores `[label][row]`.
///
/// # Panics
/// If there is no model, or they differ in labels or rows.
#[track_caller]
pub fn ensemble(models: &[Vec<Vec<f64>>]) -> Vec<Vec<f64>> {
    let first = models.first().expect("an ensemble of at least one model");
    let shape = |model: &[Vec<f64>]| model.iter().map(Vec::len).collect::<Vec<_>>();
    assert!(models.iter().all(|model| shape(model) == shape(first)), "models of different labels or rows");
    let mean = |k: usize, row: usize| models.iter().map(|model| model[k][row]).sum::<f64>() / models.len() as f64;
    (0..first.len()).map(|k| (0..first[k].len()).map(|row| mean(k, row)).collect()).collect()
}

/// Euclidean length, kept away from zero as PyTorch's `normalize` does.
fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt().max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn worked_scores() {
        // Qp is the bisector of (1, 0) and (0, 1), whatever the prompts' lengths; Qn is (-1, 0).
        let query = Query::new(&[2.0, 0.0, 0.0, 3.0], &[-5.0, 0.0], 2).unwrap();
        let (half, images) = (0.5f64.sqrt(), [3.0, 4.0, -1.0, 0.0]);
        let z = scores(&images, std::slice::from_ref(&query), Rule::Difference);
        near(z[0][0], (0.6 + 0.8) * half + 0.6);
        near(z[0][1], -half - 1.0);
        let p = scores(&images, &[query], Rule::Softmax { scale: 10.0 });
        let (positive, negative) = ((0.6 + 0.8) * half, -0.6);
        let e = |x: f64| (10.0 * x).exp();
        near(p[0][0], e(positive) / (e(positive) + e(negative)));
    }

    #[test]
    fn a_label_may_have_no_negatives_but_must_have_a_positive() {
        let query = Query::new(&[0.0, 7.0], &[], 2).unwrap();
        near(scores(&[1.0, 1.0], &[query], Rule::Difference)[0][0], 0.5f64.sqrt());
        assert!(Query::new(&[], &[1.0, 0.0], 2).unwrap_err().to_string().contains("positive"));
        assert!(Query::new(&[1.0, f32::NAN], &[], 2).is_err());
        assert!(Query::new(&[1.0, 0.0, 1.0], &[], 2).is_err());
        assert!(scores(&[], &[], Rule::Difference).is_empty());
    }

    #[test]
    fn an_ensemble_is_the_mean() {
        let models = [vec![vec![1.0, 2.0], vec![0.0, 4.0]], vec![vec![3.0, 0.0], vec![1.0, 4.0]]];
        assert_eq!(ensemble(&models), [[2.0, 1.0], [0.5, 4.0]]);
    }
}
