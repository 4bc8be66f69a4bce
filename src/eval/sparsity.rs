//! How concentrated a pair's similarities are: over patches, over tokens, and patch by patch in descending order.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Spread};
use super::scores::Difference;
use crate::loss::TierOptions;

/// How far the two entropies lie below those of a uniform distribution, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sparsity {
    /// ln P - H over a token's P patches, mean over all unmasked tokens.
    pub patches: f64,
    /// ln T - H over a patch's T unmasked tokens (its own text's count), mean over all patches.
    pub tokens: f64,
}

/// What one pair of an image and a text adds to the two means.
#[derive(Clone, Debug, PartialEq)]
pub struct OfPair {
    /// What is resampled together: the patient.
    pub group: String,
    /// Sums of ln P - H over tokens, and of ln T - H over patches.
    pub sums: [f64; 2],
    /// Tokens and patches that they are sums over.
    pub counts: [usize; 2],
}

/// Paired differences of two models on the same pairs, first minus second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SparsityDifference {
    /// Pairs.
    pub n: usize,
    /// Of [`Sparsity::patches`].
    pub patches: Difference,
    /// Of [`Sparsity::tokens`].
    pub tokens: Difference,
}

/// The sparsity of pairs: means over all their tokens, and over all their patches, as the loss takes them. `None` without any.
pub fn sparsity(pairs: &[OfPair]) -> Option<Sparsity> {
    let weights = vec![1; pairs.len()];
    Some(Sparsity { patches: mean(pairs, &weights, 0)?, tokens: mean(pairs, &weights, 1)? })
}

/// Mean `i` over pairs that count so many times.
fn mean(pairs: &[OfPair], weights: &[u32], i: usize) -> Option<f64> {
    let pairs = || pairs.iter().zip(weights);
    let count: u64 = pairs().map(|(pair, &w)| pair.counts[i] as u64 * u64::from(w)).sum();
    (count > 0).then(|| pairs().map(|(pair, &w)| pair.sums[i] * f64::from(w)).sum::<f64>() / count as f64)
}

/// Differences of two models' sparsity on the same pairs, with intervals from resampled groups; `None` without pairs.
///
/// # Panics
/// If the pairs differ in number.
#[track_caller]
pub fn compare(ours: &[OfPair], theirs: &[OfPair], draws: usize, seed: u64) -> Option<SparsityDifference> {
    assert_eq!(ours.len(), theirs.len(), "pairs of both models");
    let groups: Vec<&str> = ours.iter().map(|pair| pair.group.as_str()).collect();
    let difference = |weights: &[u32], i: usize| Some(mean(ours, weights, i)? - mean(theirs, weights, i)?);
    let drawn = Bootstrap::groups(&groups, draws, seed)
        .measure(2, |weights| vec![difference(weights, 0), difference(weights, 1)]);
    let of = |i: usize| -> Option<Difference> {
        Some(Difference::new(difference(&vec![1; ours.len()], i)?, Spread::of(&drawn[i])?))
    };
    Some(SparsityDifference { n: ours.len(), patches: of(0)?, tokens: of(1)? })
}

/// Measures the sparsity of pairs as the loss measures their entropies.
#[derive(Clone, Debug)]
pub struct SparsityMeter {
    options: TierOptions,
    pairs: Vec<OfPair>,
}

impl SparsityMeter {
    /// Uses the mask, eps and temperature of `options`, which are the training's; its lambdas do not matter.
    pub fn new(options: &TierOptions) -> Self {
        Self { options: *options, pairs: Vec::new() }
    }

    /// Adds one pair of a group: cosine similarities [T, P] by rows, and its mask `[T]`, 1 for a real token.
    ///
    /// # Panics
    /// If the similarities are not whole rows.
    #[track_caller]
    pub fn add(&mut self, group: &str, similarities: &[f32], mask: &[u8], patches: usize) {
        assert_eq!(similarities.len(), mask.len() * patches, "{} tokens, {patches} patches", mask.len());
        let kept = (0..mask.len()).filter(|&t| mask[t] != 0 || !self.options.mask_padding);
        let rows: Vec<&[f32]> = kept.map(|t| &similarities[t * patches..][..patches]).collect();
        let mut pair = OfPair { group: group.to_owned(), sums: [0.0; 2], counts: [0; 2] };
        if patches > 0 && !rows.is_empty() {
            let over_patches = |row: &&[f32]| self.below_uniform(row.iter().copied());
            let over_tokens = |patch: usize| self.below_uniform(rows.iter().map(|row| row[patch]));
            pair.sums = [rows.iter().map(over_patches).sum(), (0..patches).map(over_tokens).sum()];
            pair.counts = [rows.len(), patches];
        }
        self.pairs.push(pair);
    }

    /// ln n - H of the softmax of n similarities; NaN where one is.
    fn below_uniform(&self, similarities: impl Iterator<Item = f32>) -> f64 {
        let scaled: Vec<f64> = similarities.map(|s| f64::from(s) / self.options.temperature).collect();
        let most = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = scaled.iter().map(|s| libm::exp(s - most)).collect();
        let sum: f64 = exps.iter().sum();
        let entropy: f64 =
            exps.iter().map(|e| e / sum + self.options.eps).filter(|&p| p != 0.0).map(|p| -p * libm::log(p)).sum();
        libm::log(scaled.len() as f64) - entropy
    }

    /// What the pairs gave, in their order.
    pub fn pairs(self) -> Vec<OfPair> {
        self.pairs
    }
}

/// Patch similarities in descending order, averaged over pairs: the first is the mean of every pair's best patch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankOrdered {
    /// Pairs that `raw` is the mean of.
    pub pairs: usize,
    /// Mean similarity at each rank.
    pub raw: Vec<f64>,
    /// Mean at each rank of similarities divided by their pair's sum; it adds up to 1.
    pub normalised: Vec<f64>,
    /// Pairs left out of `normalised` because their similarities add up to no more than 0.
    pub without_sum: usize,
}

/// Rank-ordered similarities of pairs, each the similarities of one image's patches to its text; `None` without pairs.
///
/// # Panics
/// If the pairs differ in their number of patches.
#[track_caller]
pub fn rank_ordered<'a>(pairs: impl IntoIterator<Item = &'a [f32]>) -> Option<RankOrdered> {
    let mut result: Option<RankOrdered> = None;
    for pair in pairs {
        let empty = || vec![0.0; pair.len()];
        let result =
            result.get_or_insert_with(|| RankOrdered { pairs: 0, raw: empty(), normalised: empty(), without_sum: 0 });
        assert_eq!(pair.len(), result.raw.len(), "patches of this pair and of the first");
        let mut sorted: Vec<f64> = pair.iter().map(|&s| f64::from(s)).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let sum: f64 = sorted.iter().sum();
        result.pairs += 1;
        result.raw.iter_mut().zip(&sorted).for_each(|(mean, s)| *mean += s);
        if sum > 0.0 {
            result.normalised.iter_mut().zip(&sorted).for_each(|(mean, s)| *mean += s / sum);
        } else {
            result.without_sum += 1;
        }
    }
    let mut result = result?;
    let (all, with_sum) = (result.pairs as f64, (result.pairs - result.without_sum).max(1) as f64);
    result.raw.iter_mut().for_each(|x| *x /= all);
    result.normalised.iter_mut().for_each(|x| *x /= with_sum);
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    #[track_caller]
    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    fn options() -> TierOptions {
        TierOptions { eps: 0.0, ..TierOptions::default() }
    }

    #[test]
    fn worked_values() {
        // Softmax of (ln 3, 0) is (3/4, 1/4).
        let mut meter = SparsityMeter::new(&options());
        let s = 3f32.ln();
        meter.add("a", &[s, 0.0, s, 0.0, 9.0, -9.0], &[1, 1, 0], 2);
        let h = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        let mean = sparsity(&meter.pairs()).unwrap();
        assert!((mean.patches - (2f64.ln() - h)).abs() < 1e-7);
        near(mean.tokens, 0.0);
        assert_eq!(sparsity(&[]), None);
        // What is no number is not sparse.
        let mut meter = SparsityMeter::new(&options());
        meter.add("a", &[f32::NAN; 4], &[1, 1], 2);
        assert!(meter.pairs()[0].sums.iter().all(|sum| sum.is_nan()));
    }

    #[test]
    fn differences_are_of_the_means_and_their_intervals_of_resampled_groups() {
        let pair = |group: &str, sums, counts| OfPair { group: group.into(), sums, counts };
        let ours = [pair("a", [4.0, 1.0], [2, 4]), pair("b", [9.0, 3.0], [3, 4]), pair("c", [0.0, 0.0], [0, 0])];
        let theirs = [pair("a", [2.0, 1.0], [2, 4]), pair("b", [3.0, 3.0], [3, 4]), pair("c", [0.0, 0.0], [0, 0])];
        let found = compare(&ours, &theirs, 500, 1).unwrap();
        near(found.patches.observed, 13.0 / 5.0 - 5.0 / 5.0);
        // A draw has `a` or `b` alone, or both: differences from 1 to 2. Over tokens both models are the same.
        assert_eq!((found.n, found.patches.ci95, found.tokens.ci95), (3, [1.0, 2.0], [0.0, 0.0]));
        assert_eq!(compare(&[], &[], 10, 1), None);
    }

    #[test]
    fn the_entropies_are_those_of_the_loss() {
        let (t, p) = (3, 4);
        let similarities: Vec<f32> = (0..2 * t * p).map(|i| ((i * 37 % 23) as f32 / 23.0) * 2.0 - 1.0).collect();
        for mask_padding in [true, false] {
            let options = TierOptions { eps: 1e-7, temperature: 0.5, mask_padding, ..TierOptions::default() };
            let masks: [[u8; 3]; 2] = [[1, 1, 1], [1, 1, 0]];
            let counted = if mask_padding { masks } else { [[1; 3]; 2] };
            let mut meter = SparsityMeter::new(&options);
            (0..2).for_each(|i| meter.add("", &similarities[i * t * p..][..t * p], &masks[i], p));
            let entropies = Tensor::from_slice(&similarities, [2, t, p])
                .tier(&Tensor::from_slice(counted.as_flattened(), [2, t]), options.eps, options.temperature)
                .to_f64_vec();
            let mean = sparsity(&meter.pairs()).unwrap();
            let ln_t = if mask_padding { (3f64.ln() + 2f64.ln()) / 2.0 } else { 3f64.ln() };
            assert!((mean.patches - (4f64.ln() - entropies[0])).abs() < 1e-6, "{mean:?} {entropies:?}");
            assert!((mean.tokens - (ln_t - entropies[1])).abs() < 1e-6, "{mean:?} {entropies:?}");
        }
    }

    #[test]
    fn ranks_are_averaged_raw_and_as_shares() {
        let pairs: [&[f32]; 3] = [&[1.0, 3.0, 0.0], &[2.0, 1.0, 1.0], &[-1.0, -2.0, -3.0]];
        let ordered = rank_ordered(pairs).unwrap();
        assert_eq!((ordered.pairs, ordered.without_sum), (3, 1));
        assert_eq!(ordered.raw, [4.0 / 3.0, 0.0, -2.0 / 3.0]);
        assert_eq!(ordered.normalised, [(0.75 + 0.5) / 2.0, 0.25, 0.125]);
        assert_eq!(rank_ordered([]), None);
    }
}
