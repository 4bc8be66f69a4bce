//! The entropies of TIER.

use kernels_cpu::entropy::entropies;
use kernels_cpu::{Float, par};

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

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
    /// TIER's two entropies of similarities [n, T, P]: see [`Tier`].
    #[track_caller]
    pub fn tier(&self, token_mask: &Tensor, eps: f64, temperature: f64) -> Tensor {
        apply(Tier { eps, temperature }, &[self, token_mask])
    }
}

crate::check_ops!(Tier);

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
