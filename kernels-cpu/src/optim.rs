//! Optimiser steps on plain slices, in torch's formulas.

use crate::float::{Float, as_f32, as_f32_mut};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, array, dispatch};

/// One Adam or AdamW step (Kingma and Ba 2015; Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// AdamW: decay acts on the parameter, not through the gradient.
    pub decoupled: bool,
    /// 1 at the first step.
    pub step: u64,
}

impl Adam {
    /// The numbers of a step's formula: beta1, 1 - beta1, beta2, 1 - beta2, shrink, decay, rate, eps. With k = 1 - beta^step,
    /// lr m / k1 / (sqrt(v / k2) + eps) is rate m / (sqrt(v) + eps) with one factor and a scaled eps.
    pub fn constants(&self) -> [f64; 8] {
        let k1 = 1.0 - libm::pow(self.beta1, self.step as f64);
        let k2 = libm::sqrt(1.0 - libm::pow(self.beta2, self.step as f64));
        let (shrink, decay) =
            if self.decoupled { (1.0 - self.lr * self.weight_decay, 0.0) } else { (1.0, self.weight_decay) };
        let (rate, eps) = (self.lr * k2 / k1, self.eps * k2);
        [self.beta1, 1.0 - self.beta1, self.beta2, 1.0 - self.beta2, shrink, decay, rate, eps]
    }
}

/// [`Adam::constants`].
type Constants<F> = [F; 8];

struct AdamOp<'a, F> {
    p: &'a mut [F],
    g: &'a [F],
    m: &'a mut [F],
    v: &'a mut [F],
    c: Constants<F>,
}

/// Below this a second moment is 0: a denormal slows every later step down and is far below eps.
const SMALLEST: f64 = 1e-37;

impl<'a, F: Float> AdamOp<'a, F> {
    /// The same as f32, if it is.
    fn single(self) -> Result<AdamOp<'a, f32>, Self> {
        let Some(g) = as_f32(self.g) else { return Err(self) };
        let [p, m, v] = [self.p, self.m, self.v].map(|x| as_f32_mut(x).expect("same type as g"));
        let c = self.c.map(|c| c.to_f64() as f32);
        Ok(AdamOp { p, g, m, v, c })
    }

    /// The definition.
    fn plain(self) {
        let [b1, c1, b2, c2, shrink, decay, rate, eps] = self.c;
        for (((p, &g), m), v) in self.p.iter_mut().zip(self.g).zip(self.m).zip(self.v) {
            let g = g + decay * *p;
            *m = b1 * *m + c1 * g;
            let second = b2 * *v + c2 * g * g;
            *v = if second < F::from_f64(SMALLEST) { F::ZERO } else { second };
            *p = shrink * *p - rate * *m / ((*v).sqrt() + eps);
        }
    }
}

impl SimdOp for AdamOp<'_, f32> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        // No multiply-add is fused: every tier has the bits of the definition.
        let [b1, c1, b2, c2, shrink, decay, rate, eps] = array(|k| s.splat(self.c[k]));
        let (zero, smallest) = (s.splat(0.0), s.splat(SMALLEST as f32));
        let Self { p, g, m, v, .. } = self;
        let whole = g.len() / S::LANES * S::LANES;
        let step = |pi, gi, mi, vi| {
            let gi = s.add(gi, s.mul(decay, pi));
            let mi = s.add(s.mul(b1, mi), s.mul(c1, gi));
            let second = s.add(s.mul(b2, vi), s.mul(s.mul(c2, gi), gi));
            let vi = s.select(s.lt(second, smallest), zero, second);
            let pi = s.sub(s.mul(shrink, pi), s.div(s.mul(rate, mi), s.add(s.sqrt(vi), eps)));
            (pi, mi, vi)
        };
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: whole vectors of slices of the same length.
            unsafe {
                let (pp, mp, vp) = (p.as_mut_ptr().add(i), m.as_mut_ptr().add(i), v.as_mut_ptr().add(i));
                let gp = g.as_ptr().add(i);
                [pp.cast_const(), mp, vp, gp].iter().for_each(|x| s.prefetch(x.wrapping_add(AHEAD)));
                let (pi, mi, vi) = step(s.load_ptr(pp), s.load_ptr(gp), s.load_ptr(mp), s.load_ptr(vp));
                s.store_ptr(pi, pp);
                s.store_ptr(mi, mp);
                s.store_ptr(vi, vp);
            }
        }
        AdamOp { p: &mut p[whole..], g: &g[whole..], m: &mut m[whole..], v: &mut v[whole..], c: self.c }.plain();
    }
}

/// Numbers that are asked for ahead: four streams are more than the machine's own prefetching follows.
const AHEAD: usize = 512;

/// p, m and v after one step with gradient g.
///
/// # Panics
/// If the lengths differ.
pub fn adam<F: Float>(p: &mut [F], g: &[F], m: &mut [F], v: &mut [F], a: Adam) {
    assert!(p.len() == g.len() && m.len() == g.len() && v.len() == g.len(), "adam: lengths");
    let c = a.constants().map(F::from_f64);
    let (p, m, v) = (Shared::new(p), Shared::new(m), Shared::new(v));
    par::for_each(g.len(), 8, |range| {
        // SAFETY: the ranges are disjoint.
        let (p, m, v) = unsafe { (p.slice(range.clone()), m.slice(range.clone()), v.slice(range.clone())) };
        let op = AdamOp { p, g: &g[range], m, v, c };
        match op.single() {
            Ok(op) => dispatch(op),
            Err(op) => op.plain(),
        }
    });
}

/// One step of stochastic gradient descent with momentum, as torch's SGD: buf = momentum buf + (g + weight_decay p), p -= lr buf.
pub fn sgd<F: Float>(p: &mut [F], g: &[F], buf: &mut [F], lr: f64, momentum: f64, weight_decay: f64) {
    assert!(p.len() == g.len() && buf.len() == g.len(), "sgd: lengths");
    let [lr, momentum, decay] = [lr, momentum, weight_decay].map(F::from_f64);
    let (p, buf) = (Shared::new(p), Shared::new(buf));
    par::for_each(g.len(), 4, |range| {
        // SAFETY: the ranges are disjoint.
        let (p, buf) = unsafe { (p.slice(range.clone()), buf.slice(range.clone())) };
        for ((p, &g), b) in p.iter_mut().zip(&g[range]).zip(buf) {
            *b = momentum * *b + (g + decay * *p);
            *p -= lr * *b;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::eval_on;

    #[test]
    fn adam_follows_the_textbook() {
        for decoupled in [false, true] {
            let (mut p, mut m, mut v) = ([1.0f64, -2.0, 0.5], [0.0; 3], [0.0; 3]);
            let (mut tp, mut tm, mut tv) = (p, m, v);
            let (lr, b1, b2, eps, wd) = (0.1, 0.9, 0.999, 1e-8, 0.01);
            for step in 1..=5u64 {
                let g: Vec<f64> = p.iter().map(|x| x * 0.7 + 0.1 * step as f64).collect();
                adam(
                    &mut p,
                    &g,
                    &mut m,
                    &mut v,
                    Adam { lr, beta1: b1, beta2: b2, eps, weight_decay: wd, decoupled, step },
                );
                for i in 0..3 {
                    let grad = g[i] + if decoupled { 0.0 } else { wd * tp[i] };
                    if decoupled {
                        tp[i] -= lr * wd * tp[i];
                    }
                    tm[i] = b1 * tm[i] + (1.0 - b1) * grad;
                    tv[i] = b2 * tv[i] + (1.0 - b2) * grad * grad;
                    let (mh, vh) = (tm[i] / (1.0 - b1.powi(step as i32)), tv[i] / (1.0 - b2.powi(step as i32)));
                    tp[i] -= lr * mh / (vh.sqrt() + eps);
                    assert!((p[i] - tp[i]).abs() < 1e-12, "step {step}: {} instead of {}", p[i], tp[i]);
                }
            }
        }
    }

    #[test]
    fn every_tier_steps_as_the_definition() {
        let mut rng = crate::rng::Rng::new(6, 0);
        for n in [0, 1, 15, 16, 17, 100] {
            let [mut p, mut g, m, v] = [0, 1, 2, 3].map(|_| (0..n).map(|_| rng.normal() as f32).collect::<Vec<f32>>());
            let mut v: Vec<f32> = v.iter().map(|x| x.abs()).collect();
            if n > 3 {
                // A second moment that falls below the smallest.
                (p[3], g[3], v[3]) = (0.0, 0.0, 1e-38);
            }
            let c = [0.9, 0.1, 0.99, 0.01, 0.999, 0.02, 1e-2, 1e-8];
            let (mut ep, mut em, mut ev) = (p.clone(), m.clone(), v.clone());
            AdamOp { p: &mut ep, g: &g, m: &mut em, v: &mut ev, c }.plain();
            assert!(n <= 3 || ev[3] == 0.0);
            for isa in Isa::available() {
                let (mut op, mut om, mut ov) = (p.clone(), m.clone(), v.clone());
                eval_on(isa, AdamOp { p: &mut op, g: &g, m: &mut om, v: &mut ov, c });
                assert!((&op, &om, &ov) == (&ep, &em, &ev), "{isa}, {n} numbers");
            }
        }
    }

    #[test]
    fn sgd_follows_torch() {
        let (mut p, mut buf) = ([1.0f64], [0.0]);
        sgd(&mut p, &[0.5], &mut buf, 0.1, 0.9, 0.1);
        assert!((p[0] - (1.0 - 0.1 * 0.6)).abs() < 1e-15);
        sgd(&mut p, &[0.5], &mut buf, 0.1, 0.9, 0.0);
        assert!((p[0] - (0.94 - 0.1 * (0.9 * 0.6 + 0.5))).abs() < 1e-15);
    }

    /// Enough parameters for several threads, in f32 on every tier; and a second moment that would become denormal.
    #[cfg(feature = "rayon")]
    #[test]
    fn many_parameters_step_like_one() {
        use crate::testing::{apart, narrow, normals, on_every_tier, wide};
        on_every_tier(|isa| {
            let mut rng = crate::rng::Rng::new(13, 0);
            let [g, p, m] = [0; 3].map(|_| narrow(&normals(&mut rng, 30_007)));
            let v: Vec<f32> = g.iter().map(|g| g * g + 0.5).collect();
            let a = Adam { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.2, decoupled: false, step: 3 };
            let (mut all, mut all_m, mut all_v) = (p.clone(), m.clone(), v.clone());
            adam(&mut all, &g, &mut all_m, &mut all_v, a);
            let (mut p, mut m, mut v) = (wide(&p), wide(&m), wide(&v));
            for i in 0..g.len() {
                adam(&mut p[i..=i], &[f64::from(g[i])], &mut m[i..=i], &mut v[i..=i], a);
            }
            let pairs = [(&all, &p), (&all_m, &m), (&all_v, &v)];
            assert!(pairs.iter().all(|(ours, exact)| apart(&wide(ours), exact) < 1e-5), "{isa}");

            let (mut p, mut m, mut v) = ([1.0f32], [0.0], [1e-38]);
            adam(&mut p, &[0.0], &mut m, &mut v, Adam { weight_decay: 0.0, ..a });
            assert_eq!((p, v), ([1.0], [0.0]), "{isa}");
            let mut v = [1e-36];
            adam(&mut p, &[0.0], &mut m, &mut v, Adam { weight_decay: 0.0, ..a });
            assert!((v[0] - 0.99e-36).abs() < 1e-41, "{isa}");
        });
    }
}
