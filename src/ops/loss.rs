//! Losses.

use kernels_cpu::Float;
#[cfg(feature = "vulkan")]
use kernels_cpu::map::Unary;
use kernels_cpu::softmax::softmax_row;

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
}

crate::check_ops!(CrossEntropy, BceWithLogits, Contrastive);
