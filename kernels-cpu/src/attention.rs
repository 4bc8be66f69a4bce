//! Scaled dot-product attention (Vaswani et al. 2017). Scores of one head at a time; only their log-sum-exp is kept.

mod operand;

use alloc::vec;
use alloc::vec::Vec;

use crate::float::{Float, as_f32, as_f32_mut};
use crate::gemm::Mat;
use crate::math;
use crate::norm::lanes;
use crate::par::{self, Shared};
use crate::rng::philox;
use crate::simd::{Simd, SimdOp, dispatch};
use crate::softmax::softmax_row_def;
use crate::view::Strided;
pub use operand::Operand;

/// Most numbers of a vector.
const VECTOR: usize = 16;

/// Sizes and options of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Batch size.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
    /// Factor of the scores, usually 1 / sqrt(width).
    pub scale: f64,
    /// Query i sees keys up to i + keys - queries.
    pub causal: bool,
    /// [batch, keys]: 1 where a key may be seen.
    pub key_mask: Option<&'a [u8]>,
    /// Probability and key of dropout on the probabilities.
    pub dropout: Option<(f64, u64)>,
}

/// Whether a counter-based dropout with probability `p` keeps element `index`.
pub fn keeps(key: u64, index: u64, p: f64) -> bool {
    let words = philox(key, [index as u32, (index >> 32) as u32, 0, 0x64726f70]);
    f64::from(words[0]) >= p * 4_294_967_296.0
}

impl Attention<'_> {
    /// Matrix of item b, head h of a [batch, heads, n, width] view.
    fn head<'d, T>(&self, x: Strided<'d, T>, n: usize, item: usize) -> Mat<'d, T> {
        let (b, h) = (item / self.heads, item % self.heads);
        let offset = x.offset as isize + b as isize * x.strides[0] + h as isize * x.strides[1];
        Mat {
            data: x.data,
            offset: offset as usize,
            rows: n,
            cols: self.width,
            row_stride: x.strides[2],
            col_stride: x.strides[3],
        }
    }

    /// Number of keys that query `i` may see, but for the mask.
    fn reach(&self, i: usize) -> usize {
        if self.causal { (i + 1 + self.keys).saturating_sub(self.queries).min(self.keys) } else { self.keys }
    }

    /// What the mask adds to the scores of an item: 0 or -infinity for each key, and anything for what follows them.
    fn mask<F: Float>(&self, item: usize, out: &mut [F]) {
        match self.key_mask {
            Some(mask) => {
                let mask = &mask[item / self.heads * self.keys..][..self.keys];
                out.iter_mut().zip(mask).for_each(|(o, &m)| *o = if m == 0 { F::NEG_INFINITY } else { F::ZERO });
            }
            None => out.fill(F::ZERO),
        }
    }

    /// Factor that dropout puts on probability (i, j) of an item: 0 or 1 / (1 - p).
    fn drop<F: Float>(&self, item: usize, i: usize, j: usize) -> F {
        match self.dropout {
            Some((p, key)) => {
                let index = ((item * self.queries + i) * self.keys + j) as u64;
                if keeps(key, index, p) { F::from_f64(1.0 / (1.0 - p)) } else { F::ZERO }
            }
            None => F::ONE,
        }
    }

    fn drop_all<F: Float>(&self, item: usize, x: &mut [F]) {
        if self.dropout.is_some() {
            for (i, row) in x.chunks_mut(self.apart()).enumerate() {
                row[..self.keys].iter_mut().enumerate().for_each(|(j, x)| *x *= self.drop(item, i, j));
            }
        }
    }

    /// How far apart rows of scores lie: whole vectors of every tier.
    fn apart(&self) -> usize {
        self.keys.next_multiple_of(VECTOR)
    }

    /// Scores of a head as a matrix [queries, keys].
    fn scores<'d, F>(&self, x: &'d [F]) -> Mat<'d, F> {
        let apart = self.apart() as isize;
        Mat { data: x, offset: 0, rows: self.queries, cols: self.keys, row_stride: apart, col_stride: 1 }
    }

    fn cost(&self) -> usize {
        self.queries * self.keys * (self.width / 4 + 16)
    }

    fn check<T>(&self, q: Strided<'_, T>, k: Strided<'_, T>, v: Strided<'_, T>) {
        q.check(&[self.batch, self.heads, self.queries, self.width]);
        k.check(&[self.batch, self.heads, self.keys, self.width]);
        v.check(&[self.batch, self.heads, self.keys, self.width]);
        assert!(self.key_mask.is_none_or(|m| m.len() == self.batch * self.keys), "attention: length of the key mask");
    }

    /// Where row `i` of a head of `n` rows starts in [batch, n, heads, width].
    fn row(&self, item: usize, n: usize, i: usize) -> usize {
        ((item / self.heads * n + i) * self.heads + item % self.heads) * self.width
    }

    /// out [batch, queries, heads, width] = softmax(scale q k^T) v, and the log-sum-exp of the scores [batch, heads, queries].
    /// q, k, v are [batch, heads, n, width] in any layout. A query that sees no key gives zeros.
    pub fn forward<T: Operand>(
        &self,
        q: Strided<'_, T>,
        k: Strided<'_, T>,
        v: Strided<'_, T>,
        out: &mut [T::Sum],
        lse: &mut [T::Sum],
    ) {
        let (tq, tk, d, heads) = (self.queries, self.keys, self.width, self.heads);
        let zero = T::Sum::ZERO;
        assert!(
            out.len() == self.batch * tq * heads * d && lse.len() == self.batch * heads * tq,
            "attention: lengths of the outputs"
        );
        if out.is_empty() || tk == 0 {
            out.fill(zero);
            lse.fill(T::Sum::NEG_INFINITY);
            return;
        }
        self.check(q, k, v);
        let (out, lse) = (Shared::new(out), Shared::new(lse));
        par::for_each(self.batch * heads, self.cost(), |items| {
            let (mut p, mut o) = (vec![zero; tq * self.apart()], vec![zero; tq * d]);
            let (mut mask, mut factors) = (vec![zero; self.apart()], vec![zero; tq]);
            for item in items {
                T::both(self.head(q, tq, item), self.head(k, tk, item).t(), &mut p, self.apart());
                self.mask(item, &mut mask);
                // SAFETY: one head's rows, handed out once.
                let lse = unsafe { lse.slice(item * tq..(item + 1) * tq) };
                softmax(Weigh { attention: self, mask: &mask, scores: &mut p, lse, factors: Some(&mut factors) });
                self.drop_all(item, &mut p);
                T::right(self.scores(&p), self.head(v, tk, item), &mut o, d);
                for ((i, o), &factor) in o.chunks(d).enumerate().zip(&factors) {
                    let at = self.row(item, tq, i);
                    // SAFETY: as above.
                    unsafe { out.slice(at..at + d) }.iter_mut().zip(o).for_each(|(out, &o)| *out = o * factor);
                }
            }
        });
    }

    /// Gradients of q, k and v, each [batch, n, heads, width], from that of the output. Probabilities are computed again from the log-sum-exp.
    #[allow(clippy::too_many_arguments)]
    pub fn backward<T: Operand>(
        &self,
        q: Strided<'_, T>,
        k: Strided<'_, T>,
        v: Strided<'_, T>,
        lse: &[T::Sum],
        dout: &[T::Sum],
        dq: &mut [T::Sum],
        dk: &mut [T::Sum],
        dv: &mut [T::Sum],
    ) {
        let (tq, tk, d, heads) = (self.queries, self.keys, self.width, self.heads);
        let zero = T::Sum::ZERO;
        if dout.is_empty() || tk == 0 {
            return [dq, dk, dv].into_iter().for_each(|x| x.fill(zero));
        }
        self.check(q, k, v);
        assert!(
            dq.len() == dout.len() && dk.len() == self.batch * heads * tk * d && dv.len() == dk.len(),
            "attention: lengths of the gradients"
        );
        let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
        par::for_each(self.batch * heads, self.cost() * 3, |items| {
            let (mut p, mut dp) = (vec![zero; tq * self.apart()], vec![zero; tq * self.apart()]);
            let (mut mask, mut lse_of_item) = (vec![zero; self.apart()], vec![zero; tq]);
            let mut gradient = vec![zero; tq.max(tk) * d];
            for item in items {
                let (q, k, v) = (self.head(q, tq, item), self.head(k, tk, item), self.head(v, tk, item));
                let dout = Mat {
                    data: dout,
                    offset: self.row(item, tq, 0),
                    rows: tq,
                    cols: d,
                    row_stride: (heads * d) as isize,
                    col_stride: 1,
                };
                T::both(q, k.t(), &mut p, self.apart());
                self.mask(item, &mut mask);
                lse_of_item.copy_from_slice(&lse[item * tq..][..tq]);
                softmax(Weigh { attention: self, mask: &mask, scores: &mut p, lse: &mut lse_of_item, factors: None });
                T::right(dout, v.t(), &mut dp, self.apart());
                self.drop_all(item, &mut dp);
                let scale = T::Sum::from_f64(self.scale);
                dispatch(ScoreGradient { p: &p, dp: &mut dp, apart: self.apart(), cols: tk, scale });
                self.drop_all(item, &mut p);
                let (p, ds) = (self.scores(&p), self.scores(&dp));
                let mut put = |place: Shared<T::Sum>, n: usize, multiply: &dyn Fn(&mut [T::Sum])| {
                    multiply(&mut gradient[..n * d]);
                    for (i, row) in gradient[..n * d].chunks(d).enumerate() {
                        let at = self.row(item, n, i);
                        // SAFETY: one head's rows, handed out once.
                        unsafe { place.slice(at..at + d) }.copy_from_slice(row);
                    }
                };
                put(dv, tk, &|dv| T::sums(p.t(), dout, dv, d));
                put(dq, tq, &|dq| T::right(ds, k, dq, d));
                put(dk, tk, &|dk| T::right(ds.t(), q, dk, d));
            }
        });
    }
}

/// Scores of one head become weights e^(scale score - c), 0 where a key is not seen.
struct Weigh<'a, F> {
    attention: &'a Attention<'a>,
    mask: &'a [F],
    scores: &'a mut [F],
    lse: &'a mut [F],
    /// Where given, c is a row's maximum, its log-sum-exp is written and here 1 over the sum of its weights. Otherwise c is the
    /// log-sum-exp that is read.
    factors: Option<&'a mut [F]>,
}

fn softmax<F: Float>(w: Weigh<'_, F>) {
    let scale = F::from_f64(w.attention.scale);
    match (as_f32(w.mask), as_f32_mut(w.scores), as_f32_mut(w.lse)) {
        (Some(mask), Some(scores), Some(lse)) => {
            let factors = w.factors.map(|f| as_f32_mut(f).expect("same type as the scores"));
            dispatch(Weigh { attention: w.attention, mask, scores, lse, factors });
        }
        _ => {
            let (scores, lse, mut factors) = (w.scores, w.lse, w.factors);
            for (i, row) in scores.chunks_mut(w.attention.apart()).enumerate() {
                let row = &mut row[..w.attention.keys];
                row.iter_mut().zip(w.mask).for_each(|(s, &m)| *s = scale * *s + m);
                row[w.attention.reach(i)..].fill(F::NEG_INFINITY);
                match &mut factors {
                    Some(factors) => {
                        lse[i] = softmax_row_def(row);
                        factors[i] = F::ONE;
                    }
                    None if lse[i] == F::NEG_INFINITY => row.fill(F::ZERO),
                    None => row.iter_mut().for_each(|s| *s = (*s - lse[i]).exp()),
                }
            }
        }
    }
}

/// Positions in a vector.
const POSITIONS: [f32; VECTOR] = {
    let (mut positions, mut i) = ([0.0; VECTOR], 0);
    while i < VECTOR {
        positions[i] = i as f32;
        i += 1;
    }
    positions
};

impl SimdOp for Weigh<'_, f32> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(mut self, s: S) {
        let (scale, none) = (s.splat(self.attention.scale as f32), s.splat(f32::NEG_INFINITY));
        for (i, row) in self.scores.chunks_exact_mut(self.attention.apart()).enumerate() {
            let seen = self.attention.reach(i);
            // Whole vectors, as there is room; of the last one, which may be a part, what is not seen is -infinity.
            let (body, unseen) = row.split_at_mut(seen.next_multiple_of(S::LANES));
            let (mask, whole) = (&self.mask[..body.len()], seen / S::LANES * S::LANES);
            let is_seen = s.lt(s.load(&POSITIONS), s.splat((seen - whole) as f32));
            unseen.fill(0.0);
            let shift = match self.factors {
                Some(_) => {
                    let mut top = none;
                    for j in (0..whole).step_by(S::LANES) {
                        top = s.max(s.fma(s.load(&body[j..]), scale, s.load(&mask[j..])), top);
                    }
                    if whole < seen {
                        let last = s.fma(s.load(&body[whole..]), scale, s.load(&mask[whole..]));
                        top = s.max(s.select(is_seen, last, none), top);
                    }
                    s.max_lane(top)
                }
                None => self.lse[i],
            };
            let mut sum = s.splat(0.0);
            // Nothing seen: every score is -infinity, and stays so with a shift of 0.
            let c = s.splat(if shift == f32::NEG_INFINITY { 0.0 } else { shift });
            for j in (0..whole).step_by(S::LANES) {
                let e = math::exp_of_negative(s, s.sub(s.fma(s.load(&body[j..]), scale, s.load(&mask[j..])), c));
                sum = s.add(sum, e);
                s.store(e, &mut body[j..]);
            }
            if whole < seen {
                let last = s.fma(s.load(&body[whole..]), scale, s.load(&mask[whole..]));
                let e = math::exp_of_negative(s, s.sub(s.select(is_seen, last, none), c));
                sum = s.add(sum, e);
                s.store(e, &mut body[whole..]);
            }
            if let Some(factors) = &mut self.factors {
                (factors[i], self.lse[i]) = (s.sum(sum), shift);
            }
        }
        let Some(factors) = self.factors else { return };
        for i in (0..factors.len()).step_by(S::LANES) {
            let (sum, shift) = (s.load_at(factors, i, 0.0), s.load_at(self.lse, i, 0.0));
            let nothing = s.eq(sum, s.splat(0.0));
            s.store_at(s.select(nothing, sum, s.div(s.splat(1.0), sum)), factors, i);
            s.store_at(s.select(nothing, none, s.add(shift, math::log(s, sum))), self.lse, i);
        }
    }
}

/// dP becomes dS = P (dP - mean of dP by weights P) scale. The mean is divided by the sum of the weights, which the rounding of a large
/// log-sum-exp leaves some way from 1: a row of dS adds up to 0.
struct ScoreGradient<'a, F> {
    p: &'a [F],
    dp: &'a mut [F],
    apart: usize,
    cols: usize,
    scale: F,
}

impl<F: Float> SimdOp for ScoreGradient<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        for (p, dp) in self.p.chunks_exact(self.apart).zip(self.dp.chunks_exact_mut(self.apart)) {
            let (p, dp) = (&p[..self.cols], &mut dp[..self.cols]);
            let total = lanes(self.cols, |j| p[j]);
            let mean = lanes(self.cols, |j| p[j] * dp[j]) / if total > F::ZERO { total } else { F::ONE };
            dp.iter_mut().zip(p).for_each(|(d, &p)| *d = p * (*d - mean) * self.scale);
        }
    }
}

/// The definition: explicit loops over every query and key. Out as in [`Attention::forward`].
pub fn attention_def<F: Float>(a: &Attention<'_>, q: Strided<'_, F>, k: Strided<'_, F>, v: Strided<'_, F>) -> Vec<F> {
    let mut out = vec![F::ZERO; a.batch * a.queries * a.heads * a.width];
    let at = |x: Strided<'_, F>, b: usize, h: usize, i: usize, c: usize| {
        let index = [b, h, i, c].iter().zip(x.strides).map(|(&i, &s)| i as isize * s).sum::<isize>();
        x.data[(x.offset as isize + index) as usize]
    };
    for b in 0..a.batch {
        for h in 0..a.heads {
            for i in 0..a.queries {
                let visible = |j: usize| {
                    a.key_mask.is_none_or(|m| m[b * a.keys + j] != 0) && (!a.causal || j + a.queries <= i + a.keys)
                };
                let weight = |j: usize| {
                    ((0..a.width).map(|c| at(q, b, h, i, c) * at(k, b, h, j, c)).sum::<F>() * F::from_f64(a.scale))
                        .exp()
                };
                let total = (0..a.keys).filter(|&j| visible(j)).map(weight).sum::<F>();
                for j in (0..a.keys).filter(|&j| visible(j)) {
                    for c in 0..a.width {
                        out[((b * a.queries + i) * a.heads + h) * a.width + c] +=
                            weight(j) / total * a.drop(b * a.heads + h, i, j) * at(v, b, h, j, c);
                    }
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
