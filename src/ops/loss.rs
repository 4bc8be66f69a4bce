//! Losses.

use kernels_cpu::entropy::entropies;
#[cfg(feature = "vulkan")]
use kernels_cpu::map::Unary;
use kernels_cpu::softmax::softmax_row;
use kernels_cpu::{Float, par};

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
#[cfg(feature = "vulkan")]
use crate::ops::unary::Map;
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

    /// Of logits on a device: the targets' places [n, 1] (0 where a row does not count), and each row's share of the mean [n, 1].
    #[cfg(feature = "vulkan")]
    fn shares(&self, targets: &Tensor, classes: usize) -> [Tensor; 2] {
        let (targets, n) = (targets.packed(), targets.numel());
        let counted: Vec<(usize, usize)> = self.counted(targets.as_slice(), classes).collect();
        let (mut places, mut shares) = (vec![0i64; n], vec![0f32; n]);
        for &(row, target) in &counted {
            (places[row], shares[row]) = (target as i64, 1.0 / counted.len() as f32);
        }
        [Tensor::from_slice(&places, [n, 1]), Tensor::from_slice(&shares, [n, 1])]
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

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], _: Meta) -> Option<Output> {
        let [places, shares] = self.shares(x[1], x[0].dims()[1]);
        Some(x[0].to_device(on).log_softmax().gather(1, &places).mul(&shares).sum_all().neg().into())
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

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let logits = saved.input(0).to_device(on);
        let [places, shares] = self.shares(saved.input(1), logits.dims()[1]);
        let shares = shares.to_device(on);
        let dx = logits.softmax().mul(&shares).scatter_add(1, &places, &shares.neg()).mul(dy);
        Some(vec![Some(dx), None])
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

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], _: Meta) -> Option<Output> {
        let (logits, known) = (x[0].to_device(on), x[2].converted(DType::F32));
        let n = known.sum_all().item().max(1.0);
        let each = apply(Map(Unary::Softplus), &[&logits]).sub(&logits.mul(&x[1].detach()));
        Some(each.mul(&known).sum_all().affine(1.0 / n, 0.0).into())
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

/// The share of text j among image i's positives, f32 [n, n]: as many as the other way round.
#[cfg(feature = "vulkan")]
fn shares(groups: &Tensor) -> Tensor {
    let (packed, n) = (groups.packed(), groups.numel());
    let groups = packed.as_slice::<i64>();
    let count = |group: &i64| groups.iter().filter(|&g| g == group).count() as f32;
    let row = |group: &i64| {
        let (group, share) = (*group, 1.0 / count(group));
        groups.iter().map(move |&g| if g == group { share } else { 0.0 })
    };
    Tensor::from_slice(&groups.iter().flat_map(row).collect::<Vec<f32>>(), [n, n])
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

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], _: Meta) -> Option<Output> {
        let (logits, shares) = (x[0].to_device(on), shares(x[1]));
        let positive = logits.mul(&shares);
        let side = |dim: usize| logits.logsumexp(dim as isize).sub(&positive.sum(&[dim], true)).sum_all();
        Some(side(0).add(&side(1)).affine(0.5 / logits.dims()[0].max(1) as f64, 0.0).into())
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

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let (logits, shares) = (saved.input(0).to_device(on), shares(saved.input(1)));
        let by_text = logits.transpose(0, 1).softmax().transpose(0, 1);
        let slopes = logits.softmax().add(&by_text).sub(&shares.affine(2.0, 0.0));
        Some(vec![Some(slopes.affine(0.5 / logits.dims()[0].max(1) as f64, 0.0).mul(dy)), None])
    }

    fn cases(g: &mut Gen) -> Case {
        let n = g.size();
        let groups = if g.rng.chance(0.5) {
            Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n])
        } else {
            g.ids([n], n.div_ceil(2).max(1))
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
            side(&x[0]).add(&side(&x[0].transpose(0, 1))).affine(-0.5 / n.max(1) as f64, 0.0)
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

impl Tier {
    /// Of one pair's similarities [T, P] and mask `[T]`: both sums of entropies. Where `slopes` is given, their gradients times these are
    /// written into `ds`, which else is empty.
    fn pair<F: Float>(&self, s: &[F], mask: &[u8], slopes: Option<[F; 2]>, ds: &mut [F]) -> [f64; 2] {
        let (patches, eps, scale) = (s.len() / mask.len(), F::from_f64(self.eps), F::from_f64(1.0 / self.temperature));
        let tokens: Vec<&[F]> =
            s.chunks_exact(patches).zip(mask).filter(|(_, m)| **m != 0).map(|(row, _)| row).collect();
        let mut over_patches: Vec<F> = tokens.iter().flat_map(|row| row.iter().map(|&s| s * scale)).collect();
        // [P, T], so that both are softmaxes of rows.
        let mut over_tokens = vec![F::ZERO; over_patches.len()];
        for (j, row) in over_tokens.chunks_exact_mut(tokens.len().max(1)).enumerate() {
            row.iter_mut().enumerate().for_each(|(k, s)| *s = over_patches[k * patches + j]);
        }
        let slope = |which: usize| slopes.map(|slopes| slopes[which]);
        let sums = [
            entropies(&mut over_patches, patches, eps, slope(0)),
            entropies(&mut over_tokens, tokens.len(), eps, slope(1)),
        ];
        let counted = ds.chunks_exact_mut(patches).zip(mask).filter(|(_, m)| **m != 0);
        for (k, (ds, _)) in counted.enumerate() {
            let row = &over_patches[k * patches..][..patches];
            ds.iter_mut().zip(row).enumerate().for_each(|(j, (d, &s))| *d = s + over_tokens[j * tokens.len() + k]);
        }
        sums
    }

    /// What both sums are divided by: the number of tokens that count, and of patches.
    fn counts(mask: &[u8], [n, _, p]: [usize; 3]) -> [f64; 2] {
        let tokens = mask.iter().filter(|&&m| m != 0).count();
        [tokens.max(1) as f64, (n * p).max(1) as f64]
    }
}

/// One of TIER's softmaxes on a device.
#[cfg(feature = "vulkan")]
struct Side {
    /// Probabilities along the last dimension.
    p: Tensor,
    /// 1 where they count, else 0.
    seen: Tensor,
    /// What the sum of entropies is divided by.
    count: f64,
}

#[cfg(feature = "vulkan")]
impl Tier {
    /// Over patches, [n, T, P], and over tokens, [n, P, T].
    fn sides(&self, on: &Gpu, s: &Tensor, mask: &Tensor) -> [Side; 2] {
        let [n, t, p] = [0, 1, 2].map(|k| s.dims()[k]);
        let counts = Self::counts(mask.packed().as_slice(), [n, t, p]);
        let (s, seen) = (s.to_device(on).affine(1.0 / self.temperature, 0.0), mask.converted(DType::F32).to_device(on));
        let by_patch = s.transpose(1, 2).reshape([n * p, t]).masked_softmax(mask).reshape([n, p, t]);
        [
            Side { p: s.softmax(), seen: seen.unsqueeze(2), count: counts[0] },
            Side { p: by_patch, seen: seen.unsqueeze(1), count: counts[1] },
        ]
    }

    /// ln (p + eps), finite where both are 0: there it is multiplied by 0.
    fn log(&self, p: &Tensor) -> Tensor {
        p.affine(1.0, self.eps).clamp(f32::MIN_POSITIVE.into(), f64::INFINITY).log()
    }
}

/// Operations per similarity: two exponentials and two logarithms.
const TIER_COST: usize = 32;

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
        let (d, mask) = (<[usize; 3]>::try_from(&s.dims()[..]).expect("checked by shape"), mask.as_slice::<u8>());
        for_float!("tier", out.dtype, F => {
            let (s, [n, t, p]) = (s.as_slice::<F>(), d);
            let pairs = if t * p == 0 { 0 } else { n };
            let sums: Vec<[f64; 2]> = par::map_chunks(pairs, 1, t * p * TIER_COST, |i| {
                self.pair(&s[i.start * t * p..][..t * p], &mask[i.start * t..][..t], None, &mut [])
            });
            let counts = Self::counts(mask, d);
            let mean = |which: usize| (sums.iter().map(|sums| sums[which]).sum::<f64>() / counts[which]) as F;
            Tensor::from_slice(&[mean(0), mean(1)], [2])
        })
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], _: Meta) -> Option<Output> {
        let entropy = |side: &Side| {
            let sum = side.p.affine(1.0, self.eps).mul(&self.log(&side.p)).mul(&side.seen).sum_all();
            sum.affine(-1.0 / side.count, 0.0).reshape([1])
        };
        let both = self.sides(on, x[0], x[1]).each_ref().map(entropy);
        Some(Tensor::concat(&both.each_ref(), 0).into())
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::INPUTS
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (s, mask, dy) = (saved.input(0).packed(), saved.input(1).packed(), dy.to_f64_vec());
        let (d, mask) = (<[usize; 3]>::try_from(&s.dims()[..]).expect("checked by shape"), mask.as_slice::<u8>());
        let counts = Self::counts(mask, d);
        let ds = for_float!("tier", s.dtype(), F => Tensor::write(d, |ds: &mut [F]| {
            let (s, [_, t, p]) = (s.as_slice::<F>(), d);
            let slopes = [0, 1].map(|which| (dy[which] / counts[which] / self.temperature) as F);
            ds.fill(0.0);
            par::chunks_mut(ds, t * p, t * p * TIER_COST, |i, ds| {
                self.pair(&s[i * t * p..][..t * p], &mask[i * t..][..t], Some(slopes), ds);
            });
        }));
        vec![Some(ds), None]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let sides = self.sides(on, saved.input(0), saved.input(1));
        let [over_patches, over_tokens] = [0, 1].map(|which| {
            // As in kernels-cpu's `entropies`.
            let Side { p, seen, count } = &sides[which];
            let slopes = self.log(p).affine(1.0, 1.0);
            let dot = p.mul(&slopes).sum(&[2], true);
            let slope = dy.at(0, which).affine(1.0 / count / self.temperature, 0.0);
            p.mul(&dot.sub(&slopes)).mul(seen).mul(&slope)
        });
        Some(vec![Some(over_patches.add(&over_tokens.transpose(1, 2))), None])
    }

    fn cases(g: &mut Gen) -> Case {
        let [n, t, p] = [g.size(), g.size(), g.size()];
        let full = g.rng.chance(0.5);
        let mask = g.mask([n, t], if full { 2.0 } else { 0.7 });
        let temperature = g.choose(&[1.0, 0.5]);
        Case::new(vec![g.tensor([n, t, p]), mask], move |x| x[0].tier(&x[1], 1e-7, temperature)).equals(move |x| {
            let (s, seen) = (x[0].affine(1.0 / temperature, 0.0), x[1].to_dtype(x[0].dtype()));
            let entropy = |p: &Tensor, seen: &Tensor, count: usize| {
                let p = p.affine(1.0, 1e-7);
                p.mul(&p.log()).mul(seen).sum_all().affine(-1.0 / count.max(1) as f64, 0.0).reshape([1])
            };
            let counted = x[1].to_vec::<u8>().iter().filter(|&&m| m != 0).count();
            let by_patch = s.transpose(1, 2).reshape([n * p, t]).masked_softmax(&x[1]).reshape([n, p, t]);
            let over_patches = entropy(&s.softmax(), &seen.unsqueeze(2), counted);
            Tensor::concat(&[&over_patches, &entropy(&by_patch, &seen.unsqueeze(1), n * p)], 0)
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

    #[test]
    fn tier_has_the_same_bits_for_any_number_of_threads() {
        let mut rng = crate::rng::Rng::new(3, 0);
        let s = Tensor::randn([9, 40, 196], DType::F32, &mut rng).trainable();
        let mask: Vec<u8> = (0..9 * 40).map(|at| u8::from(at % 40 < 20 + at / 40)).collect();
        let mask = Tensor::from_slice(&mask, [9, 40]);
        let run = |threads| {
            par::Pool::new(threads).install(|| {
                let y = s.tier(&mask, 1e-7, 1.0);
                let value = y.to_vec::<f32>();
                (value, y.sum_all().backward().get(&s).unwrap().to_vec::<f32>())
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5));
        assert!(one.0.iter().all(|h| *h > 0.0) && one.1.iter().any(|d| *d != 0.0));
    }
}
