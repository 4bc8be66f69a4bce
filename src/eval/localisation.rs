//! Does a heat map point at the finding? Judged at patch level: a patch is inside if its centre lies in one of the boxes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Spread};
use super::metrics::mean;
use super::scores::Difference;

/// Scores of an image's patches, rows from the top.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchMap {
    /// height times width scores.
    pub scores: Vec<f32>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// One image and one label that is boxed in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The finding.
    pub label: String,
    /// The image, as its table names it.
    pub image: String,
    /// Cases of one group (the image, or better the patient) are resampled together.
    pub group: String,
    /// Scores of the label's prompts.
    pub map: PatchMap,
    /// Side of the square that the model sees, in pixels.
    pub crop: usize,
    /// Boxes of the label: x, y, width, height in pixels of that square; they may reach beyond it.
    pub boxes: Vec<[f64; 4]>,
}

/// Where a map is cut for its overlap with the boxes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// Patches that reach this score.
    Value(f64),
    /// The highest patches of each map: those that reach its quantile, so 0.9 takes the best tenth.
    Quantile(f64),
}

/// The thresholds of the report: shares of the map, and the scores that BioViL's evaluation uses.
pub const THRESHOLDS: [Threshold; 9] = [
    Threshold::Quantile(0.95),
    Threshold::Quantile(0.9),
    Threshold::Quantile(0.8),
    Threshold::Quantile(0.7),
    Threshold::Value(0.1),
    Threshold::Value(0.2),
    Threshold::Value(0.3),
    Threshold::Value(0.4),
    Threshold::Value(0.5),
];

/// What one case measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// Mean score of the patches inside.
    pub inside: f64,
    /// Mean score of the patches outside.
    pub outside: f64,
    /// 1 if the best patch is inside; of several equally good ones, the share that is.
    pub pointing: f64,
    /// Share of the patches that are inside: what a random patch hits.
    pub chance: f64,
    /// `pointing` of the patch in the middle of the image.
    pub centre_prior: f64,
    /// (inside - outside) / sqrt(variance inside + variance outside); undefined where neither varies.
    pub contrast_to_noise: Option<f64>,
    /// Per threshold: intersection over union of the map's, of as many random patches (expected), and of as many nearest to the centre.
    pub iou: Vec<[f64; 3]>,
}

impl Measure {
    /// Inside minus outside.
    pub fn difference(&self) -> f64 {
        self.inside - self.outside
    }
}

/// Which patches have their centre in a box.
pub fn inside(height: usize, width: usize, crop: usize, boxes: &[[f64; 4]]) -> Vec<bool> {
    let centre = |at: usize, of: usize| (at as f64 + 0.5) * crop as f64 / of as f64;
    let within = |x: f64, start: f64, length: f64| x >= start && x < start + length;
    let patch = |at: usize| {
        let (x, y) = (centre(at % width, width), centre(at / width, height));
        boxes.iter().any(|b| within(x, b[0], b[2]) && within(y, b[1], b[3]))
    };
    (0..height * width).map(patch).collect()
}

/// Measures one case; `None` where no patch is inside, or none outside: the boxes are too small for the grid, or fill it.
///
/// # Panics
/// If the map is not height times width.
#[track_caller]
pub fn measure(case: &Case, thresholds: &[Threshold]) -> Option<Measure> {
    let PatchMap { scores, height, width } = &case.map;
    assert_eq!(scores.len(), height * width, "a map of {height} x {width} patches");
    let inside = inside(*height, *width, case.crop, &case.boxes);
    let count = inside.iter().filter(|&&i| i).count();
    if count == 0 || count == inside.len() {
        return None;
    }
    let of = |which: bool| -> Vec<f64> {
        scores.iter().zip(&inside).filter(|(_, i)| **i == which).map(|(&s, _)| f64::from(s)).collect()
    };
    let ((inner, inner_variance), (outer, outer_variance)) = (moments(&of(true)), moments(&of(false)));
    let noise = (inner_variance + outer_variance).sqrt();
    let scores: Vec<f64> = scores.iter().map(|&s| f64::from(s)).collect();
    let prior = centre_prior(*height, *width);
    let mut from_centre: Vec<usize> = (0..prior.len()).collect();
    from_centre.sort_by(|&a, &b| prior[b].total_cmp(&prior[a]));
    let iou = |threshold: &Threshold| {
        let cut = match *threshold {
            Threshold::Value(value) => value,
            Threshold::Quantile(q) => {
                let mut sorted = scores.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let taken = ((1.0 - q) * sorted.len() as f64).round().clamp(1.0, sorted.len() as f64);
                sorted[taken as usize - 1]
            }
        };
        let predicted: Vec<bool> = scores.iter().map(|&s| s >= cut).collect();
        let taken = predicted.iter().filter(|&&p| p).count();
        let mut central = vec![false; scores.len()];
        from_centre[..taken].iter().for_each(|&at| central[at] = true);
        let iou = |mask: &[bool]| super::metrics::iou(mask, &inside).unwrap_or(0.0);
        [iou(&predicted), chance_iou(scores.len(), count, taken), iou(&central)]
    };
    Some(Measure {
        inside: inner,
        outside: outer,
        pointing: pointing(&scores, &inside),
        chance: count as f64 / inside.len() as f64,
        centre_prior: pointing(&prior, &inside),
        contrast_to_noise: (noise > 0.0).then(|| (inner - outer) / noise),
        iou: thresholds.iter().map(iou).collect(),
    })
}

/// A map that is highest in the middle.
fn centre_prior(height: usize, width: usize) -> Vec<f64> {
    let from_middle = |at: usize, of: usize| (2 * at + 1).abs_diff(of).pow(2) as f64 / (of * of) as f64;
    (0..height * width).map(|at| -(from_middle(at % width, width) + from_middle(at / width, height))).collect()
}

/// Share of the best patches that are inside.
fn pointing(scores: &[f64], inside: &[bool]) -> f64 {
    if scores.iter().any(|s| s.is_nan()) {
        return f64::NAN;
    }
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let best: Vec<bool> = scores.iter().zip(inside).filter(|(s, _)| **s == most).map(|(_, i)| *i).collect();
    best.iter().filter(|&&i| i).count() as f64 / best.len().max(1) as f64
}

/// Mean and variance (of the values themselves, divided by their number).
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
}

/// Expected intersection over union of `inside` patches of `all` with `taken` random ones: over the hypergeometric overlap.
fn chance_iou(all: usize, inside: usize, taken: usize) -> f64 {
    let ln_choose = |n: usize, k: usize| {
        let ln_factorial = |x: usize| libm::lgamma(x as f64 + 1.0);
        ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
    };
    let overlap = |x: usize| {
        let ln_p = ln_choose(inside, x) + ln_choose(all - inside, taken - x) - ln_choose(all, taken);
        libm::exp(ln_p) * x as f64 / (inside + taken - x) as f64
    };
    ((inside + taken).saturating_sub(all).max(1)..=inside.min(taken)).map(overlap).sum()
}

/// Overlap at one threshold, mean over cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// Where maps are cut.
    pub threshold: Threshold,
    /// Intersection over union with the boxes.
    pub iou: f64,
    /// Expected of as many random patches.
    pub chance: f64,
    /// Of as many patches nearest to the centre.
    pub centre_prior: f64,
}

/// Means over the cases of one label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelLocalisation {
    /// Cases.
    pub n: usize,
    /// Mean score inside.
    pub inside: f64,
    /// Mean score outside.
    pub outside: f64,
    /// Their difference.
    pub inside_minus_outside: f64,
    /// Share of best patches that are inside.
    pub pointing_game: f64,
    /// What a random patch hits: the share of the image that the boxes cover.
    pub chance: f64,
    /// What the middle patch hits.
    pub centre_prior: f64,
    /// Mean contrast-to-noise ratio.
    pub contrast_to_noise: Option<f64>,
}

/// Means over all cases, (image, label) each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Localisation {
    /// Cases.
    pub n: usize,
    /// Cases left out: no patch's centre is in their boxes, or every one's is.
    pub left_out: usize,
    /// Mean over cases of mean score inside minus mean score outside.
    pub inside_minus_outside: f64,
    /// 95 % interval.
    pub inside_minus_outside_ci95: [f64; 2],
    /// Share of cases whose best patch is inside.
    pub pointing_game: f64,
    /// 95 % interval.
    pub pointing_game_ci95: [f64; 2],
    /// What a random patch hits.
    pub chance: f64,
    /// What the middle patch hits.
    pub centre_prior: f64,
    /// Mean contrast-to-noise ratio, signed: below 0 where the map is higher outside.
    pub contrast_to_noise: Option<f64>,
    /// Mean of its absolute value, as BioViL's evaluation reports it.
    pub contrast_to_noise_absolute: Option<f64>,
    /// Overlap at several thresholds.
    pub iou: Vec<Overlap>,
    /// Per label.
    pub labels: BTreeMap<String, LabelLocalisation>,
}

/// Measures every case with the usual [`THRESHOLDS`].
pub fn measure_all(cases: &[Case]) -> Vec<Option<Measure>> {
    cases.iter().map(|case| measure(case, &THRESHOLDS)).collect()
}

/// Means of the cases' measures (as [`measure_all`] gives them), with intervals from `draws` resamplings of the cases' groups; `None` where none counts.
///
/// # Panics
/// If there is not one measure per case.
#[track_caller]
pub fn summarise(cases: &[Case], measures: &[Option<Measure>], draws: usize, seed: u64) -> Option<Localisation> {
    assert_eq!(cases.len(), measures.len(), "cases and measures");
    let counted: Vec<(&Case, &Measure)> =
        cases.iter().zip(measures).filter_map(|(c, m)| Some((c, m.as_ref()?))).collect();
    let of_all = |f: &dyn Fn(&Measure) -> Option<f64>| mean(counted.iter().map(|(_, m)| f(m)));
    let [difference, pointing] = spreads(
        &counted.iter().map(|(c, _)| *c).collect::<Vec<_>>(),
        draws,
        seed,
        [&|i| counted[i].1.difference(), &|i| counted[i].1.pointing],
    );
    let overlap = |(k, threshold): (usize, &Threshold)| {
        let [iou, chance, centre_prior] = [0, 1, 2].map(|j| of_all(&|m| m.iou.get(k).map(|iou| iou[j])));
        Some(Overlap { threshold: *threshold, iou: iou?, chance: chance?, centre_prior: centre_prior? })
    };
    let names: BTreeSet<&String> = counted.iter().map(|(case, _)| &case.label).collect();
    let label = |name: &String| {
        let of: Vec<&Measure> = counted.iter().filter(|(case, _)| case.label == *name).map(|(_, m)| *m).collect();
        let mean_of = |f: &dyn Fn(&Measure) -> f64| of.iter().map(|m| f(m)).sum::<f64>() / of.len() as f64;
        LabelLocalisation {
            n: of.len(),
            inside: mean_of(&|m| m.inside),
            outside: mean_of(&|m| m.outside),
            inside_minus_outside: mean_of(&Measure::difference),
            pointing_game: mean_of(&|m| m.pointing),
            chance: mean_of(&|m| m.chance),
            centre_prior: mean_of(&|m| m.centre_prior),
            contrast_to_noise: mean(of.iter().map(|m| m.contrast_to_noise)),
        }
    };
    Some(Localisation {
        n: counted.len(),
        left_out: cases.len() - counted.len(),
        inside_minus_outside: of_all(&|m| Some(m.difference()))?,
        inside_minus_outside_ci95: difference?.ci95,
        pointing_game: of_all(&|m| Some(m.pointing))?,
        pointing_game_ci95: pointing?.ci95,
        chance: of_all(&|m| Some(m.chance))?,
        centre_prior: of_all(&|m| Some(m.centre_prior))?,
        contrast_to_noise: of_all(&|m| m.contrast_to_noise),
        contrast_to_noise_absolute: of_all(&|m| m.contrast_to_noise.map(f64::abs)),
        iou: THRESHOLDS.iter().enumerate().filter_map(overlap).collect(),
        labels: names.into_iter().map(|name| (name.clone(), label(name))).collect(),
    })
}

/// Paired differences of two models on the same cases, first minus second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalisationDifference {
    /// Cases that count for both.
    pub n: usize,
    /// Of inside minus outside.
    pub inside_minus_outside: Difference,
    /// Of the pointing game.
    pub pointing_game: Difference,
}

/// Differences of two models' measures of the same cases, with intervals; `None` where no case counts for both.
///
/// # Panics
/// If there is not one measure of each model per case.
#[track_caller]
pub fn compare(
    cases: &[Case],
    ours: &[Option<Measure>],
    theirs: &[Option<Measure>],
    draws: usize,
    seed: u64,
) -> Option<LocalisationDifference> {
    assert!(cases.len() == ours.len() && cases.len() == theirs.len(), "cases and measures");
    let both = ours.iter().zip(theirs).zip(cases).filter_map(|((a, b), case)| Some((a.as_ref()?, b.as_ref()?, case)));
    let both: Vec<(&Measure, &Measure, &Case)> = both.collect();
    let difference = |i: usize| both[i].0.difference() - both[i].1.difference();
    let pointing = |i: usize| both[i].0.pointing - both[i].1.pointing;
    let groups: Vec<&Case> = both.iter().map(|(_, _, case)| *case).collect();
    let [d, p] = spreads(&groups, draws, seed, [&difference, &pointing]);
    let observed = |f: &dyn Fn(usize) -> f64| (0..both.len()).map(f).sum::<f64>() / both.len() as f64;
    Some(LocalisationDifference {
        n: both.len(),
        inside_minus_outside: Difference::new(observed(&difference), d?),
        pointing_game: Difference::new(observed(&pointing), p?),
    })
}

/// Spreads of two means over cases, their groups resampled.
fn spreads(cases: &[&Case], draws: usize, seed: u64, of: [&(dyn Fn(usize) -> f64 + Sync); 2]) -> [Option<Spread>; 2] {
    let groups: Vec<&str> = cases.iter().map(|case| case.group.as_str()).collect();
    let drawn = Bootstrap::groups(&groups, draws, seed).measure(2, |weights| {
        let total = weights.iter().map(|&w| u64::from(w)).sum::<u64>();
        let sum = |f: &dyn Fn(usize) -> f64| weights.iter().enumerate().map(|(i, &w)| f64::from(w) * f(i)).sum::<f64>();
        of.iter().map(|f| (total > 0).then(|| sum(f) / total as f64)).collect()
    });
    [Spread::of(&drawn[0]), Spread::of(&drawn[1])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn a_map_that_is_not_of_numbers_points_nowhere() {
        assert_eq!(pointing(&[1.0, 3.0, 3.0], &[true, true, false]), 0.5);
        assert!(pointing(&[1.0, f64::NAN, 3.0], &[true, true, false]).is_nan());
    }

    /// A 2 x 4 map over a crop of 80 pixels: patches of 20 x 40, centres x 10, 30, 50, 70 and y 20, 60.
    fn case(scores: [f32; 8], boxes: &[[f64; 4]]) -> Case {
        Case {
            label: "nodule".into(),
            image: "x.png".into(),
            group: "image".into(),
            map: PatchMap { scores: scores.to_vec(), height: 2, width: 4 },
            crop: 80,
            boxes: boxes.to_vec(),
        }
    }

    #[test]
    fn a_patch_is_inside_if_its_centre_is() {
        let of = |boxes: &[[f64; 4]]| inside(2, 4, 80, boxes).iter().map(|&i| u8::from(i)).collect::<Vec<_>>();
        assert_eq!(of(&[[0.0, 0.0, 31.0, 40.0]]), [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(&[[10.0, 20.0, 20.0, 40.0]]), [1, 0, 0, 0, 0, 0, 0, 0], "the far edges are outside");
        assert_eq!(of(&[[11.0, 21.0, 8.0, 38.0]]), [0; 8], "between centres");
        assert_eq!(of(&[[-50.0, 50.0, 70.0, 500.0], [65.0, 0.0, 99.0, 25.0]]), [0, 0, 0, 1, 1, 0, 0, 0]);
        assert_eq!(of(&[]), [0; 8]);
    }

    #[test]
    fn worked_measures() {
        let case = case([0.9, 0.1, 0.3, 0.2, 0.0, 0.0, 0.5, 0.0], &[[0.0, 0.0, 35.0, 40.0]]);
        let m = measure(&case, &[Threshold::Value(0.3), Threshold::Quantile(0.75)]).unwrap();
        near(m.inside, 0.5);
        near(m.outside, 1.0 / 6.0);
        near(m.difference(), 1.0 / 3.0);
        assert_eq!((m.pointing, m.chance), (1.0, 0.25));
        // Centres nearest to the middle: columns 1 and 2 of both rows; one of the four is inside.
        assert_eq!(m.centre_prior, 0.25);
        let variance = [0.3f64, 0.2, 0.0, 0.0, 0.5, 0.0].iter().map(|x| (x - 1.0 / 6.0).powi(2)).sum::<f64>() / 6.0;
        assert!((m.contrast_to_noise.unwrap() - (1.0 / 3.0) / (0.16 + variance).sqrt()).abs() < 1e-6);
        // At 0.3: patches 0, 2, 6, of which one is inside; the union has four. The central three are 1, 2, 5: union four.
        near(m.iou[0][0], 1.0 / 4.0);
        near(m.iou[0][2], 1.0 / 4.0);
        // Three random of eight, two inside: overlap 1 with 30/56, overlap 2 with 6/56.
        near(m.iou[0][1], 30.0 / 56.0 / 4.0 + 6.0 / 56.0 * 2.0 / 3.0);
        // The best quarter: patches 0 and 6.
        near(m.iou[1][0], 1.0 / 3.0);
    }

    #[test]
    fn a_constant_map_points_by_chance_and_has_no_contrast() {
        let m = measure(&case([0.5; 8], &[[0.0, 0.0, 35.0, 40.0]]), &[Threshold::Quantile(0.9)]).unwrap();
        assert_eq!((m.pointing, m.chance), (0.25, 0.25));
        assert_eq!((m.contrast_to_noise, m.difference()), (None, 0.0));
        m.iou[0].iter().for_each(|&iou| near(iou, 0.25)); // Ties are all taken.
    }

    #[test]
    fn means_are_over_cases_and_those_that_cannot_count_are_counted() {
        let left = [[0.0, 0.0, 35.0, 40.0]];
        let mut cases = vec![
            case([0.9, 0.1, 0.3, 0.2, 0.0, 0.0, 0.5, 0.0], &left),
            case([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], &left),
            case([0.0; 8], &[[0.0, 0.0, 5.0, 5.0]]),
            case([0.0; 8], &[[0.0, 0.0, 80.0, 80.0]]),
        ];
        cases[1].label = "effusion".into();
        cases[1].group = "another".into();
        let measures = measure_all(&cases);
        let all = summarise(&cases, &measures, 100, 1).unwrap();
        assert_eq!((all.n, all.left_out), (2, 2));
        near(all.inside_minus_outside, (1.0 / 3.0 - 1.0 / 6.0) / 2.0);
        assert_eq!((all.pointing_game, all.chance, all.centre_prior), (0.5, 0.25, 0.25));
        assert_eq!(all.pointing_game_ci95, [0.0, 1.0]);
        assert!(all.contrast_to_noise_absolute > all.contrast_to_noise);
        assert_eq!(all.labels["effusion"].pointing_game, 0.0);
        near(all.labels["effusion"].inside_minus_outside, -1.0 / 6.0);
        assert_eq!(all.iou.len(), THRESHOLDS.len());
        assert_eq!(summarise(&cases[2..], &measures[2..], 100, 1), None);
    }

    #[test]
    fn two_models_are_compared_case_by_case() {
        let left = [[0.0, 0.0, 35.0, 40.0]];
        let of = |hit: f32| -> Vec<Case> {
            let mut cases = vec![case([hit, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0], &left); 5];
            cases.iter_mut().enumerate().for_each(|(i, case)| case.group = i.to_string());
            cases
        };
        let (ours, theirs) = (of(0.6), of(0.0));
        let d = compare(&ours, &measure_all(&ours), &measure_all(&theirs), 50, 1).unwrap();
        near(d.inside_minus_outside.observed, 0.3);
        near(d.inside_minus_outside.ci95[0], 0.3);
        assert_eq!((d.n, d.pointing_game.ci95), (5, [1.0, 1.0]));
    }
}
