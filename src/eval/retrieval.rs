//! Text for image: is the right report among the nearest?

use std::collections::BTreeMap;

use kernels_cpu::par;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Share of images with a right text among the nearest 1 and 5, beside what a random order gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Images, and texts to choose from.
    pub n: usize,
    /// Share with a hit at rank 1.
    pub recall_at_1: f64,
    /// Share with a hit among the first five.
    pub recall_at_5: f64,
    /// `recall_at_1` of a random order.
    pub chance_at_1: f64,
    /// `recall_at_5` of a random order.
    pub chance_at_5: f64,
}

/// Images looked at together; bounds the memory of their similarities.
const BLOCK: usize = 256;

/// Retrieval of texts `[n, d]` by images `[n, d]`, row i of both being a pair; embeddings are normalised here. A hit is the same
/// text or another text of the same patient. Texts that are equally near count as in random order, so that a model
/// that finds all alike scores chance.
///
/// # Errors
/// Where an embedding is not finite.
///
/// # Panics
/// If the shapes differ, or there is not one text and one patient per row.
#[track_caller]
pub fn retrieval(
    images: &Tensor,
    texts: &Tensor,
    words: &[&str],
    patients: &[Option<&str>],
) -> Result<Option<Retrieval>> {
    assert_eq!(images.dims(), texts.dims(), "retrieval: images and texts");
    let n = words.len();
    assert!(images.dim(0) == n && patients.len() == n, "retrieval: {:?}, {n} texts", images.dims());
    if n == 0 {
        return Ok(None);
    }
    let (words, patients) = (numbered(words.iter().copied().map(Some)), numbered(patients.iter().copied()));
    let (images, texts) = (images.l2_normalise(), texts.l2_normalise().transpose(0, 1));
    let mut sums = [0.0; 4];
    for start in (0..n).step_by(BLOCK) {
        let block = BLOCK.min(n - start);
        let similarities = images.narrow(0, start, block).matmul(&texts).to_f64_vec();
        if let Some(at) = similarities.iter().position(|s| !s.is_finite()) {
            let (image, text) = (start + at / n + 1, at % n + 1);
            return Err(Error::new(format!("image {image} and text {text}: their similarity is not a number")));
        }
        let found = par::map_chunks(block, 1, 2 * n, |range| {
            let i = start + range.start;
            let right = |j: usize| words[i] == words[j] || (patients[i].is_some() && patients[i] == patients[j]);
            let similarities = &similarities[range.start * n..][..n];
            let hits = (0..n).filter(|&j| right(j)).count();
            // The nearest right text, how many wrong ones are nearer, and how many of each are as near.
            let nearest = (0..n).filter(|&j| right(j)).map(|j| similarities[j]).fold(f64::NEG_INFINITY, f64::max);
            let nearer = similarities.iter().filter(|&&s| s > nearest).count();
            let tied = (0..n).filter(|&j| similarities[j] == nearest);
            let [mut right_tied, mut wrong_tied] = [0, 0];
            tied.for_each(|j| *(if right(j) { &mut right_tied } else { &mut wrong_tied }) += 1);
            let recall = |k: usize| some_hit(right_tied, wrong_tied, k.saturating_sub(nearer));
            let chance = |k: usize| some_hit(hits, n - hits, k);
            [recall(1), recall(5), chance(1), chance(5)]
        });
        found.iter().for_each(|image| sums.iter_mut().zip(image).for_each(|(sum, x)| *sum += x));
    }
    let [recall_at_1, recall_at_5, chance_at_1, chance_at_5] = sums.map(|sum| sum / n as f64);
    Ok(Some(Retrieval { n, recall_at_1, recall_at_5, chance_at_1, chance_at_5 }))
}

/// Probability that `k` drawn without replacement from `hits` and `misses` have at least one hit.
fn some_hit(hits: usize, misses: usize, k: usize) -> f64 {
    let all = hits + misses;
    let none: f64 = (0..k.min(all)).map(|i| misses.saturating_sub(i) as f64 / (all - i) as f64).product();
    1.0 - none
}

/// Equal names, equal numbers.
fn numbered<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Vec<Option<usize>> {
    let mut numbers = BTreeMap::new();
    let number = |name| {
        let next = numbers.len();
        *numbers.entry(name).or_insert(next)
    };
    let mut number = number;
    names.map(|name| name.map(&mut number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(images: &[f32], texts: &[f32], words: &[&str], patients: &[Option<&str>]) -> Retrieval {
        let tensor = |values: &[f32]| Tensor::from_slice(values, [words.len(), values.len() / words.len()]);
        retrieval(&tensor(images), &tensor(texts), words, patients).unwrap().unwrap()
    }

    #[track_caller]
    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    /// Points on the unit circle.
    fn circle(degrees: &[f32]) -> Vec<f32> {
        degrees.iter().flat_map(|d| [d.to_radians().cos(), d.to_radians().sin()]).collect()
    }

    #[test]
    fn ranks_by_hand() {
        // Image 0 is nearest to its own text; image 1 to text 0 and then its own; the rest have theirs last of six.
        let images = circle(&[0.0, 4.0, 90.0, 100.0, 110.0, 120.0]);
        let texts = circle(&[1.0, 8.0, 270.0, 280.0, 290.0, 300.0]);
        let words = ["a", "b", "c", "d", "e", "f"];
        let found = of(&images, &texts, &words, &[None; 6]);
        near(found.recall_at_1, 1.0 / 6.0);
        near(found.chance_at_1, 1.0 / 6.0);
        near(found.chance_at_5, 5.0 / 6.0);
        // Image 2 (90): texts at 8, 1 are nearer, then 300 (150 away), 290, 280, own 270 last: a miss at 5.
        // Image 3 (100): 8, 1, then 270 (170), own 280 (180): ranks 3-6: wrong ones nearer are 8, 1, 300 (160), 270 (170), 290 (170): a miss.
        // Images 4 (110), 5 (120): own text is opposite, so last: misses.
        near(found.recall_at_5, 2.0 / 6.0);
    }

    #[test]
    fn the_same_text_and_the_same_patient_are_hits() {
        let (images, texts) = (circle(&[0.0, 90.0, 180.0]), circle(&[90.0, 0.0, 180.0]));
        assert_eq!(of(&images, &texts, &["a", "b", "c"], &[None; 3]).recall_at_1, 1.0 / 3.0);
        let same_text = of(&images, &texts, &["a", "a", "c"], &[None; 3]);
        near(same_text.recall_at_1, 1.0);
        near(same_text.chance_at_1, (2.0 / 3.0 * 2.0 + 1.0 / 3.0) / 3.0);
        let same_patient = of(&images, &texts, &["a", "b", "c"], &[Some("p"), Some("p"), None]);
        assert_eq!(same_patient, same_text);
        assert_eq!(of(&images, &texts, &["a", "b", "c"], &[None, None, Some("p")]).recall_at_1, 1.0 / 3.0);
    }

    #[test]
    fn a_model_that_finds_all_alike_scores_chance() {
        let words: Vec<String> = (0..20).map(|i| format!("text {}", i % 9)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let found = of(&[1.0; 40], &[1.0; 40], &words, &[None; 20]);
        near(found.recall_at_1, found.chance_at_1);
        near(found.recall_at_5, found.chance_at_5);
        assert!(found.chance_at_1 > 0.1 && found.chance_at_5 < 0.5);
    }

    #[test]
    fn more_images_than_a_block() {
        let degrees: Vec<f32> = (0..300).map(|i| i as f32).collect();
        let words: Vec<String> = (0..300).map(|i| i.to_string()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let found = of(&circle(&degrees), &circle(&degrees), &words, &[None; 300]);
        assert_eq!(found.recall_at_1, 1.0);
        near(found.chance_at_5, 5.0 / 300.0);
    }

    #[test]
    fn embeddings_that_are_no_numbers_are_named() {
        let images = Tensor::from_slice(&[1.0f32, 0.0, f32::NAN, 1.0], [2, 2]);
        let texts = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0], [2, 2]);
        let error = retrieval(&images, &texts, &["a", "b"], &[None; 2]).unwrap_err().to_string();
        assert!(error.contains("image 2"), "{error}");
        let none = Tensor::zeros([0, 2], crate::DType::F32);
        assert_eq!(retrieval(&none, &none, &[], &[]).unwrap(), None);
    }
}
