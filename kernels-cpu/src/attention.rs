//! Scaled dot-product attention (Vaswani et al. 2017). Scores of one head at a time; only their log-sum-exp is kept.

use alloc::vec;
use alloc::vec::Vec;

use crate::float::Float;
use crate::gemm::{Mat, gemm_serial};
use crate::par::{self, Shared};
use crate::rng::philox;
use crate::softmax::{exp_in_place, softmax_row};
use crate::view::Strided;

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
    fn head<'d, F: Float>(&self, x: Strided<'d, F>, n: usize, item: usize) -> Mat<'d, F> {
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

    /// Scaled scores with -infinity where a key is not seen: [queries, keys].
    fn scores<F: Float>(&self, q: Mat<'_, F>, k: Mat<'_, F>, item: usize, scores: &mut [F]) {
        gemm_serial(q, k.t(), false, scores, self.keys, None);
        let mask = self.key_mask.map(|m| &m[item / self.heads * self.keys..][..self.keys]);
        let scale = F::from_f64(self.scale);
        for (i, row) in scores.chunks_mut(self.keys).enumerate() {
            row.iter_mut().for_each(|s| *s *= scale);
            if let Some(mask) = mask {
                row.iter_mut().zip(mask).for_each(|(s, &m)| *s = if m == 0 { F::NEG_INFINITY } else { *s });
            }
            if self.causal {
                row[(i + 1 + self.keys).saturating_sub(self.queries).min(self.keys)..].fill(F::NEG_INFINITY);
            }
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
            x.iter_mut().enumerate().for_each(|(at, x)| *x *= self.drop(item, at / self.keys, at % self.keys));
        }
    }

    fn cost(&self) -> usize {
        self.queries * self.keys * (self.width / 4 + 16)
    }

    fn check<F: Float>(&self, q: Strided<'_, F>, k: Strided<'_, F>, v: Strided<'_, F>) {
        q.check(&[self.batch, self.heads, self.queries, self.width]);
        k.check(&[self.batch, self.heads, self.keys, self.width]);
        v.check(&[self.batch, self.heads, self.keys, self.width]);
        assert!(self.key_mask.is_none_or(|m| m.len() == self.batch * self.keys), "attention: length of the key mask");
    }

    /// out [batch, queries, heads, width] = softmax(scale q k^T) v, and the log-sum-exp of the scores [batch, heads, queries].
    /// q, k, v are [batch, heads, n, width] in any layout. A query that sees no key gives zeros.
    pub fn forward<F: Float>(
        &self,
        q: Strided<'_, F>,
        k: Strided<'_, F>,
        v: Strided<'_, F>,
        out: &mut [F],
        lse: &mut [F],
    ) {
        let (tq, tk, d, heads) = (self.queries, self.keys, self.width, self.heads);
        assert!(
            out.len() == self.batch * tq * heads * d && lse.len() == self.batch * heads * tq,
            "attention: lengths of the outputs"
        );
        out.fill(F::ZERO);
        lse.fill(F::NEG_INFINITY);
        if out.is_empty() || tk == 0 {
            return;
        }
        self.check(q, k, v);
        let (out, lse) = (Shared::new(out), Shared::new(lse));
        par::for_each(self.batch * heads, self.cost(), |items| {
            let (mut p, mut o) = (vec![F::ZERO; tq * tk], vec![F::ZERO; tq * d]);
            for item in items {
                self.scores(self.head(q, tq, item), self.head(k, tk, item), item, &mut p);
                // SAFETY: one head's rows, handed out once.
                let lse = unsafe { lse.slice(item * tq..(item + 1) * tq) };
                lse.iter_mut().zip(p.chunks_mut(tk)).for_each(|(l, row)| *l = softmax_row(row));
                self.drop_all(item, &mut p);
                gemm_serial(Mat::new(&p, tq, tk), self.head(v, tk, item), false, &mut o, d, None);
                let (b, h) = (item / heads, item % heads);
                for (i, o) in o.chunks(d).enumerate() {
                    let at = ((b * tq + i) * heads + h) * d;
                    // SAFETY: as above.
                    unsafe { out.slice(at..at + d) }.copy_from_slice(o);
                }
            }
        });
    }

    /// Gradients of q, k and v, each [batch, heads, n, width] contiguous, from those of the output. Probabilities are
    /// computed again from the log-sum-exp.
    #[allow(clippy::too_many_arguments)]
    pub fn backward<F: Float>(
        &self,
        q: Strided<'_, F>,
        k: Strided<'_, F>,
        v: Strided<'_, F>,
        lse: &[F],
        dout: &[F],
        dq: &mut [F],
        dk: &mut [F],
        dv: &mut [F],
    ) {
        let (tq, tk, d, heads) = (self.queries, self.keys, self.width, self.heads);
        for x in [&mut *dq, &mut *dk, &mut *dv] {
            x.fill(F::ZERO);
        }
        if dout.is_empty() || tk == 0 {
            return;
        }
        self.check(q, k, v);
        assert!(
            dq.len() == dout.len() && dk.len() == self.batch * heads * tk * d && dv.len() == dk.len(),
            "attention: lengths of the gradients"
        );
        let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
        let scale = F::from_f64(self.scale);
        par::for_each(self.batch * heads, self.cost() * 3, |items| {
            let (mut p, mut dp) = (vec![F::ZERO; tq * tk], vec![F::ZERO; tq * tk]);
            for item in items {
                let (q, k, v) = (self.head(q, tq, item), self.head(k, tk, item), self.head(v, tk, item));
                let (b, h) = (item / heads, item % heads);
                let dout = Mat {
                    data: dout,
                    offset: (b * tq * heads + h) * d,
                    rows: tq,
                    cols: d,
                    row_stride: (heads * d) as isize,
                    col_stride: 1,
                };
                self.scores(q, k, item, &mut p);
                for (row, &lse) in p.chunks_mut(tk).zip(&lse[item * tq..]) {
                    probabilities(row, lse);
                }
                gemm_serial(dout, v.t(), false, &mut dp, tk, None);
                self.drop_all(item, &mut dp);
                // dS = P (dP - sum_j P dP), with dropout inside dP; then P with dropout for dV.
                for (p, dp) in p.chunks(tk).zip(dp.chunks_mut(tk)) {
                    let dot = p.iter().zip(&*dp).map(|(&p, &d)| p * d).sum::<F>();
                    dp.iter_mut().zip(p).for_each(|(d, &p)| *d = p * (*d - dot) * scale);
                }
                self.drop_all(item, &mut p);
                let (p, ds) = (Mat::new(&p, tq, tk), Mat::new(&dp, tq, tk));
                // SAFETY: one head's gradients, handed out once.
                let (dq, dk, dv) = unsafe {
                    (
                        dq.slice(item * tq * d..(item + 1) * tq * d),
                        dk.slice(item * tk * d..(item + 1) * tk * d),
                        dv.slice(item * tk * d..(item + 1) * tk * d),
                    )
                };
                gemm_serial(p.t(), dout, false, dv, d, None);
                gemm_serial(ds, k, false, dq, d, None);
                gemm_serial(ds.t(), q, false, dk, d, None);
            }
        });
    }
}

/// e^(score - log-sum-exp), which is what softmax gave; 0 where no key was seen.
fn probabilities<F: Float>(row: &mut [F], lse: F) {
    if lse == F::NEG_INFINITY {
        return row.fill(F::ZERO);
    }
    row.iter_mut().for_each(|s| *s -= lse);
    exp_in_place(row);
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
