//! Losses.

use kernels_cpu::Float;
use kernels_cpu::softmax::softmax_row;

use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

/// Mean over rows of -ln softmax(logits)`[target]` for logits [n, c] and i64 targets `[n]`; rows whose target is `ignore` are left out.
/// Without any row it is 0.
pub struct CrossEntropy {
    /// Target of rows that do not count.
    pub ignore: i64,
}

impl CrossEntropy {
    fn counted<'a>(&self, targets: &'a [i64], classes: usize) -> impl Iterator<Item = (usize, usize)> + 'a {
        let ignore = self.ignore;
        targets.iter().enumerate().filter(move |(_, t)| **t != ignore).map(move |(row, &t)| {
            assert!(t >= 0 && (t as usize) < classes, "cross_entropy: target {t} of row {row} for {classes} classes");
            (row, t as usize)
        })
    }
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(
            x[0].dims.len() == 2 && x[1].dtype == DType::I64 && x[1].dims[..] == x[0].dims[..1],
            "cross_entropy: {:?} with targets {:?}",
            x[0],
            x[1]
        );
        Meta::new([], x[0].dtype)
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (logits, targets) = (x[0].packed(), x[1].packed());
        let classes = logits.dims()[1];
        for_float!("cross_entropy", out.dtype, F => {
            let (mut sum, mut n) = (0.0 as F, 0);
            let mut row = vec![0.0 as F; classes];
            for (r, t) in self.counted(targets.as_slice(), classes) {
                row.copy_from_slice(&logits.as_slice::<F>()[r * classes..][..classes]);
                let target = row[t];
                sum += softmax_row(&mut row) - target;
                n += 1;
            }
            Tensor::scalar(if n == 0 { 0.0 } else { sum / n as F })
        })
        .into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::INPUTS
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (logits, targets) = (saved.input(0).packed(), saved.input(1).packed());
        let classes = logits.dims()[1];
        let n = self.counted(targets.as_slice(), classes).count();
        let dx = for_float!("cross_entropy", dy.dtype(), F => Tensor::write(*logits.dims(), |dx: &mut [F]| {
            dx.fill(0.0);
            let scale = dy.item() as F / n.max(1) as F;
            for (r, t) in self.counted(targets.as_slice(), classes) {
                let row = &mut dx[r * classes..][..classes];
                row.copy_from_slice(&logits.as_slice::<F>()[r * classes..][..classes]);
                softmax_row(row);
                row[t] -= 1.0;
                row.iter_mut().for_each(|d| *d *= scale);
            }
        }));
        vec![Some(dx), None]
    }

    fn cases(g: &mut Gen) -> Case {
        let [n, classes] = [g.size(), g.size_from(1)];
        let targets: Vec<i64> =
            (0..n).map(|_| if g.rng.chance(0.2) { -100 } else { g.rng.below(classes) as i64 }).collect();
        let inputs = vec![g.tensor([n, classes]), Tensor::from_slice(&targets, [n])];
        Case::new(inputs, |x| x[0].cross_entropy(&x[1], -100)).equals(move |x| {
            let counted = targets.iter().filter(|&&t| t != -100).count().max(1);
            let hot: Vec<f64> =
                targets.iter().flat_map(|&t| (0..classes as i64).map(move |c| f64::from(u8::from(c == t)))).collect();
            x[0].log_softmax()
                .mul(&Tensor::from_slice(&hot, [n, classes]).to_dtype(x[0].dtype()))
                .sum_all()
                .affine(-1.0 / counted as f64, 0.0)
        })
    }
}

/// Mean binary cross-entropy of logits against targets 0..1, where the weight (same dims) is not 0; without any it is 0.
/// max(x, 0) - x t + ln(1 + e^-|x|).
pub struct BceWithLogits;

impl Op for BceWithLogits {
    fn name(&self) -> &'static str {
        "bce_with_logits"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(x[0] == x[1] && x[2].dims == x[0].dims && x[2].dtype == DType::U8, "bce_with_logits: {x:?}");
        Meta::new([], x[0].dtype)
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let [x, t, known] = [0, 1, 2].map(|i| x[i].packed());
        for_float!("bce_with_logits", out.dtype, F => {
            let (mut sum, mut n) = (0.0 as F, 0);
            for ((&x, &t), &k) in x.as_slice::<F>().iter().zip(t.as_slice::<F>()).zip(known.as_slice::<u8>()) {
                if k != 0 {
                    sum += Float::max(x, 0.0) - x * t + Float::ln(1.0 + Float::exp(-Float::abs(x)));
                    n += 1;
                }
            }
            Tensor::scalar(if n == 0 { 0.0 } else { sum / n as F })
        })
        .into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::INPUTS
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (x, t) = (saved.input(0), saved.input(1));
        let known = saved.input(2).to_dtype(dy.dtype());
        let n = known.sum_all().item().max(1.0);
        let scale = dy.affine(1.0 / n, 0.0);
        vec![
            saved.want(0, || x.sigmoid().sub(t).mul(&known).mul(&scale)),
            saved.want(1, || x.neg().mul(&known).mul(&scale)),
            None,
        ]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 2);
        let inputs = vec![g.away_from(dims, &[0.0]), g.uniform(dims, 0.0, 1.0), g.mask(dims, 0.8)];
        Case::new(inputs, |x| apply(BceWithLogits, &x.iter().collect::<Vec<_>>())).equals(|x| {
            let known = x[2].to_dtype(x[0].dtype());
            let n = known.sum_all().item().max(1.0);
            let p = x[0].sigmoid();
            let likelihood = x[1].mul(&p.log()).add(&x[1].affine(-1.0, 1.0).mul(&p.affine(-1.0, 1.0).log()));
            likelihood.mul(&known).sum_all().affine(-1.0 / n, 0.0)
        })
    }
}

/// Symmetric InfoNCE (Radford et al. 2021) of logits [n, n], image i against text j. `groups` (i64 `[n]`) names what counts as positive: image i and
/// text j where group i = group j, with equal shares. Distinct groups give pairs as in CLIP.
pub struct Contrastive;

/// Calls `row(i, probabilities, shares)` for every image and every text; returns the mean over both of lse - sum share logit.
fn contrast<F: Float>(logits: &[F], groups: &[i64], mut row: impl FnMut(bool, usize, &[F], &[F])) -> F {
    let n = groups.len();
    let mut sum = F::ZERO;
    let (mut p, mut shares) = (vec![F::ZERO; n], vec![F::ZERO; n]);
    for texts in [false, true] {
        for i in 0..n {
            let positives = groups.iter().filter(|&&g| g == groups[i]).count();
            let mut expected = F::ZERO;
            for j in 0..n {
                p[j] = logits[if texts { j * n + i } else { i * n + j }];
                shares[j] = if groups[i] == groups[j] { F::from_f64(1.0 / positives as f64) } else { F::ZERO };
                expected += shares[j] * p[j];
            }
            sum += softmax_row(&mut p) - expected;
            row(texts, i, &p, &shares);
        }
    }
    sum / F::from_f64(2.0 * n.max(1) as f64)
}

impl Op for Contrastive {
    fn name(&self) -> &'static str {
        "contrastive"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let d = x[0].dims;
        assert!(
            d.len() == 2 && d[0] == d[1] && x[1].dims[..] == d[..1] && x[1].dtype == DType::I64,
            "contrastive: logits {:?}, groups {:?}",
            x[0],
            x[1]
        );
        Meta::new([], x[0].dtype)
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (logits, groups) = (x[0].packed(), x[1].packed());
        for_float!("contrastive", out.dtype, F => Tensor::scalar(contrast(logits.as_slice::<F>(), groups.as_slice(), |_, _, _, _| ()))).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::INPUTS
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (logits, groups) = (saved.input(0).packed(), saved.input(1).packed());
        let n = groups.numel();
        let dx = for_float!("contrastive", dy.dtype(), F => Tensor::write([n, n], |dx: &mut [F]| {
            dx.fill(0.0);
            let scale = dy.item() as F / (2 * n.max(1)) as F;
            contrast(logits.as_slice::<F>(), groups.as_slice(), |texts, i, p, shares| {
                for j in 0..n {
                    dx[if texts { j * n + i } else { i * n + j }] += (p[j] - shares[j]) * scale;
                }
            });
        }));
        vec![Some(dx), None]
    }

    fn cases(g: &mut Gen) -> Case {
        let n = g.size_from(1);
        let groups = if g.rng.chance(0.5) {
            Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n])
        } else {
            g.ids([n], n.div_ceil(2))
        };
        Case::new(vec![g.tensor([n, n]), groups], |x| x[0].contrastive(&x[1])).equals(move |x| {
            let ids = x[1].to_vec::<i64>();
            let shares: Vec<f64> = (0..n * n)
                .map(|at| {
                    f64::from(u8::from(ids[at / n] == ids[at % n]))
                        / ids.iter().filter(|&&g| g == ids[at / n]).count() as f64
                })
                .collect();
            let shares = Tensor::from_slice(&shares, [n, n]).to_dtype(x[0].dtype());
            let side = |logits: &Tensor| logits.log_softmax().mul(&shares).sum_all();
            side(&x[0]).add(&side(&x[0].transpose(0, 1))).affine(-0.5 / n as f64, 0.0)
        })
    }
}

/// The entropies that TIER penalises (Palepu and Beam 2023), of similarities S [n, T, P] between a pair's tokens and patches and a u8
/// mask [n, T] of tokens that count. Output `[2]`: the mean over tokens of the entropy of the softmax over patches, and the mean over
/// patches of the entropy of the softmax over tokens. Entropy is -sum (p + eps) ln (p + eps); S is divided by the temperature.
pub struct Tier {
    /// Added to every probability after the softmax.
    pub eps: f64,
    /// Divides the similarities.
    pub temperature: f64,
}

/// -sum (p + eps) ln (p + eps); leaves -(ln (p + eps) + 1) in `p` beside the probabilities in `kept`.
fn entropy<F: Float>(p: &mut [F], eps: F, kept: &mut [F]) -> F {
    kept.copy_from_slice(p);
    let mut h = F::ZERO;
    for p in p {
        let log = (*p + eps).ln();
        h -= (*p + eps) * log;
        *p = -(log + F::ONE);
    }
    h
}

impl Tier {
    /// Both sums and counts; `slope(indices, p, dH/dp)` is called for every softmax.
    fn walk<F: Float>(
        &self,
        s: &[F],
        mask: &[u8],
        [n, t, p]: [usize; 3],
        mut slope: impl FnMut(bool, &[usize], &[F], &[F]),
    ) -> [F; 2] {
        let (eps, temperature) = (F::from_f64(self.eps), F::from_f64(self.temperature));
        let tokens = mask.iter().filter(|&&m| m != 0).count();
        let mut sums = [F::ZERO; 2];
        let (mut row, mut kept, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut one = |over_tokens: bool, places: &[usize], sum: &mut F| {
            row.clear();
            row.extend(places.iter().map(|&at| s[at] / temperature));
            kept.resize(places.len(), F::ZERO);
            softmax_row(&mut row);
            *sum += entropy(&mut row, eps, &mut kept);
            slope(over_tokens, places, &kept, &row);
        };
        for i in 0..n {
            let mask = &mask[i * t..][..t];
            for k in (0..t).filter(|&k| mask[k] != 0) {
                places.clear();
                places.extend((0..p).map(|j| (i * t + k) * p + j));
                one(false, &places, &mut sums[0]);
            }
            for j in 0..p {
                places.clear();
                places.extend((0..t).filter(|&k| mask[k] != 0).map(|k| (i * t + k) * p + j));
                one(true, &places, &mut sums[1]);
            }
        }
        [sums[0] / F::from_f64(tokens.max(1) as f64), sums[1] / F::from_f64((n * p).max(1) as f64)]
    }
}

impl Op for Tier {
    fn name(&self) -> &'static str {
        "tier"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let d = x[0].dims;
        assert!(
            d.len() == 3 && x[1].dtype == DType::U8 && x[1].dims[..] == d[..2],
            "tier: similarities {:?}, mask {:?}",
            x[0],
            x[1]
        );
        Meta::new([2], x[0].dtype)
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (s, mask) = (x[0].packed(), x[1].packed());
        let d = s.dims();
        for_float!("tier", out.dtype, F => {
            Tensor::from_slice(&self.walk(s.as_slice::<F>(), mask.as_slice(), [d[0], d[1], d[2]], |_, _, _, _| ()), [2])
        })
        .into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::INPUTS
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (s, mask, dy) = (saved.input(0).packed(), saved.input(1).packed(), dy.to_f64_vec());
        let d = s.dims();
        let tokens = mask.as_slice::<u8>().iter().filter(|&&m| m != 0).count();
        let scale = [dy[0] / tokens.max(1) as f64, dy[1] / (d[0] * d[2]).max(1) as f64].map(|x| x / self.temperature);
        let ds = for_float!("tier", s.dtype(), F => Tensor::write(*d, |ds: &mut [F]| {
            ds.fill(0.0);
            self.walk(s.as_slice::<F>(), mask.as_slice(), [d[0], d[1], d[2]], |over_tokens, places, p, slope| {
                // Through the softmax: dS = p (g - sum p g).
                let dot = p.iter().zip(slope).map(|(p, g)| p * g).sum::<F>();
                for ((&at, p), g) in places.iter().zip(p).zip(slope) {
                    ds[at] += p * (g - dot) * scale[usize::from(over_tokens)] as F;
                }
            });
        }));
        vec![Some(ds), None]
    }

    fn cases(g: &mut Gen) -> Case {
        let [n, t, p] = [g.size_from(1), g.size_from(1), g.size_from(1)];
        let full = g.rng.chance(0.5);
        let mask = g.mask([n, t], if full { 2.0 } else { 0.7 });
        let temperature = g.choose(&[1.0, 0.5]);
        let case = Case::new(vec![g.tensor([n, t, p]), mask], move |x| x[0].tier(&x[1], 1e-7, temperature));
        if !full {
            return case;
        }
        case.equals(move |x| {
            let entropy = |s: &Tensor, count: usize| {
                let p = s.affine(1.0 / temperature, 0.0).softmax().affine(1.0, 1e-7);
                p.mul(&p.log()).sum_all().affine(-1.0 / count as f64, 0.0).reshape([1])
            };
            Tensor::concat(&[&entropy(&x[0], n * t), &entropy(&x[0].transpose(1, 2), n * p)], 0)
        })
    }
}

impl Tensor {
    /// Mean cross-entropy of logits [n, c] with i64 targets `[n]`; target `ignore` does not count.
    #[track_caller]
    pub fn cross_entropy(&self, targets: &Tensor, ignore: i64) -> Tensor {
        apply(CrossEntropy { ignore }, &[self, targets])
    }

    /// Symmetric InfoNCE of logits [n, n]; `groups` (i64 `[n]`) names which images and texts belong together.
    #[track_caller]
    pub fn contrastive(&self, groups: &Tensor) -> Tensor {
        apply(Contrastive, &[self, groups])
    }

    /// TIER's two entropies of similarities [n, T, P]: see [`Tier`].
    #[track_caller]
    pub fn tier(&self, token_mask: &Tensor, eps: f64, temperature: f64) -> Tensor {
        apply(Tier { eps, temperature }, &[self, token_mask])
    }
}

crate::check_ops!(CrossEntropy, BceWithLogits, Contrastive, Tier);

#[cfg(test)]
mod tests {
    use super::*;

    /// A pure function of the paper's definition, by hand: two tokens, two patches, S = [[1, 0], [0, 1]].
    #[test]
    fn tier_of_a_case_by_hand() {
        let s = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0], [1, 2, 2]);
        let p: f64 = 1.0f64.exp() / (1.0f64.exp() + 1.0);
        let h = -(p * p.ln() + (1.0 - p) * (1.0 - p).ln());
        let y = s.tier(&Tensor::from_slice(&[1u8, 1], [1, 2]), 0.0, 1.0).to_vec::<f64>();
        assert!((y[0] - h).abs() < 1e-12 && (y[1] - h).abs() < 1e-12);
        // With the second token padded: one token over two patches, and nothing to choose between tokens.
        let y = s.tier(&Tensor::from_slice(&[1u8, 0], [1, 2]), 0.0, 1.0).to_vec::<f64>();
        assert!((y[0] - h).abs() < 1e-12 && y[1].abs() < 1e-12);
    }
}
