//! Bootstrap percentile intervals, and paired differences by using the same draws for both sides.

use std::collections::BTreeMap;

use kernels_cpu::par;
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// Streams of random numbers that nothing else uses.
const STREAM: u64 = 0xb007 << 32;

/// Seeded resampling of rows with replacement; of groups of rows where rows of one group (a patient) depend on each other.
///
/// Draw `k` of seed `s` is the same whatever is measured, on any number of threads.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Group of every row.
    group_of: Vec<usize>,
    groups: usize,
    /// Number of draws.
    pub draws: usize,
    /// Seed of all draws.
    pub seed: u64,
}

impl Bootstrap {
    /// Resamples `rows` rows.
    pub fn rows(rows: usize, draws: usize, seed: u64) -> Self {
        Self { group_of: (0..rows).collect(), groups: rows, draws, seed }
    }

    /// Resamples the groups that rows of equal name form.
    pub fn groups(of_row: &[impl AsRef<str>], draws: usize, seed: u64) -> Self {
        let mut names = BTreeMap::new();
        let group_of = of_row.iter().map(|name| {
            let next = names.len();
            *names.entry(name.as_ref()).or_insert(next)
        });
        let group_of = group_of.collect();
        Self { group_of, groups: names.len(), draws, seed }
    }

    /// How many times each row is drawn in draw `draw`.
    pub fn weights(&self, draw: usize) -> Vec<u32> {
        let mut rng = Rng::new(self.seed, STREAM | draw as u64);
        let mut counts = vec![0; self.groups];
        for _ in 0..self.groups {
            counts[rng.below(self.groups)] += 1;
        }
        self.group_of.iter().map(|&group| counts[group]).collect()
    }

    /// Measures every draw: `measure(weights)` gives one value per statistic, `None` where it is undefined in that draw.
    /// Returned per statistic, by draw.
    pub fn measure(
        &self,
        statistics: usize,
        measure: impl Fn(&[u32]) -> Vec<Option<f64>> + Sync,
    ) -> Vec<Vec<Option<f64>>> {
        let cost = self.group_of.len() * statistics.max(1);
        let by_draw = par::map_chunks(self.draws, 1, cost, |range| {
            range.map(|draw| measure(&self.weights(draw))).next().unwrap_or_default()
        });
        (0..statistics).map(|k| by_draw.iter().map(|values| values.get(k).copied().flatten()).collect()).collect()
    }
}

/// What the draws of one statistic say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean over draws.
    pub mean: f64,
    /// Percentiles 2.5 and 97.5.
    pub ci95: [f64; 2],
    /// Draws in which the statistic was defined.
    pub draws: usize,
}

impl Spread {
    /// Mean and 95 % percentile interval of the draws in which the statistic is defined; `None` where that is none.
    pub fn of(values: &[Option<f64>]) -> Option<Self> {
        let mut values: Vec<f64> = values.iter().copied().flatten().collect();
        values.sort_by(f64::total_cmp);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let ci95 = [percentile(&values, 2.5)?, percentile(&values, 97.5)?];
        Some(Self { mean, ci95, draws: values.len() })
    }

    /// Spread of the paired differences `a - b`, over the draws in which both are defined.
    pub fn of_difference(a: &[Option<f64>], b: &[Option<f64>]) -> Option<Self> {
        Self::of(&a.iter().zip(b).map(|(a, b)| Some((*a)? - (*b)?)).collect::<Vec<_>>())
    }
}

/// Percentile of ascending values, linear between neighbours; `None` where there are none.
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let at = percent / 100.0 * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_as_numpy_gives_them() {
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 50.0), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 75.0), Some(3.0));
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 100.0), Some(4.0));
        assert_eq!(percentile(&[3.0], 2.5), Some(3.0));
        assert_eq!(percentile(&[], 2.5), None);
    }

    #[test]
    fn groups_are_drawn_whole() {
        let bootstrap = Bootstrap::groups(&["a", "b", "a", "c", "b", "a"], 50, 1);
        for draw in 0..50 {
            let w = bootstrap.weights(draw);
            assert!(w[0] == w[2] && w[2] == w[5] && w[1] == w[4]);
            assert_eq!(w[0] + w[1] + w[3], 3);
        }
        assert_eq!(Bootstrap::rows(7, 1, 1).weights(0).iter().sum::<u32>(), 7);
        assert!(Bootstrap::rows(0, 3, 1).weights(0).is_empty());
    }

    #[test]
    fn the_interval_of_a_mean_is_as_wide_as_its_standard_error_says() {
        let mut rng = Rng::new(3, 0);
        let values: Vec<f64> = (0..400).map(|_| rng.normal()).collect();
        let measure =
            |w: &[u32]| vec![Some(w.iter().zip(&values).map(|(w, v)| f64::from(*w) * v).sum::<f64>() / 400.0)];
        let draws = Bootstrap::rows(400, 2000, 9).measure(1, measure);
        let spread = Spread::of(&draws[0]).unwrap();
        let half = (spread.ci95[1] - spread.ci95[0]) / 2.0;
        assert!((half - 1.96 / 20.0).abs() < 0.01, "{spread:?}");
        assert!((spread.mean - values.iter().sum::<f64>() / 400.0).abs() < 0.005);
    }

    #[test]
    fn any_thread_count_draws_the_same() {
        let run = |threads| {
            par::Pool::new(threads).install(|| {
                Bootstrap::rows(100, 64, 4).measure(2, |w| vec![Some(f64::from(w[0]) / 3.0), (w[1] > 0).then_some(1.0)])
            })
        };
        let one = run(1);
        assert!([2, 5].iter().all(|&threads| run(threads) == one));
        let spread = Spread::of(&one[1]).unwrap();
        assert!(spread.draws < 64 && spread.draws > 20, "undefined draws are left out: {spread:?}");
        assert_eq!(Spread::of(&[None, None]), None);
    }

    #[test]
    fn paired_differences_use_the_draws_that_both_have() {
        let spread = Spread::of_difference(&[Some(3.0), None, Some(5.0)], &[Some(1.0), Some(1.0), Some(3.0)]).unwrap();
        assert_eq!(spread, Spread { mean: 2.0, ci95: [2.0, 2.0], draws: 2 });
    }
}
