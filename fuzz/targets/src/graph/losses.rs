//! Losses on both sides.

use tiergrad::Tensor;
use tiergrad::op::apply;
use tiergrad::ops::loss::BceWithLogits;

use super::Graph;
use super::naive::{Naive, logsumexp, softmax};
use super::num::{Num, num, sum};

impl Graph<'_> {
    pub(super) fn cross_entropy(&mut self) {
        let x = self.of_rank(2, 2);
        let [n, classes] = [x.naive.dims[0], x.naive.dims[1]];
        if classes == 0 {
            return;
        }
        let targets: Vec<i64> = (0..n).map(|_| self.below(classes + 1) as i64 - 1).collect();
        let counted: Vec<usize> = (0..n).filter(|&i| targets[i] >= 0).collect();
        let of = |i: usize| {
            let row = &x.naive.at[i * classes..][..classes];
            logsumexp(row) - row[targets[i] as usize]
        };
        let y = sum(counted.iter().map(|&i| of(i))) * num(1.0 / counted.len().max(1) as f64);
        let tensor = x.tensor.cross_entropy(&Tensor::from_slice(&targets, [n]), -1);
        self.keep("cross_entropy", tensor, Naive { dims: Vec::new(), at: vec![y] });
    }

    pub(super) fn contrastive(&mut self) {
        let n = 1 + self.below(6);
        let x = self.of_dims(&[n, n]);
        let (groups, group) = self.ids(&[n], n);
        let side = |x: &Naive| {
            sum((0..n).map(|i| {
                let row = &x.at[i * n..][..n];
                let own: Vec<Num> = (0..n).filter(|&j| group[i] == group[j]).map(|j| row[j]).collect();
                logsumexp(row) - sum(own.iter().copied()) * num(1.0 / own.len() as f64)
            }))
        };
        let y = (side(&x.naive) + side(&x.naive.transposed())) * num(0.5 / n as f64);
        self.keep("contrastive", x.tensor.contrastive(&groups), Naive { dims: Vec::new(), at: vec![y] });
    }

    pub(super) fn tier(&mut self) {
        let x = self.of_rank(3, 3);
        let [n, t, p] = [0, 1, 2].map(|k| x.naive.dims[k]);
        if n * t * p == 0 {
            return;
        }
        let (mask, real) = self.mask(&[n, t]);
        let (eps, temperature) = (1e-7, [1.0, 0.5][self.below(2)]);
        let entropy = |row: &[Num]| {
            let p = softmax(row);
            -sum(p.iter().map(|&p| (p + num(eps)) * (p + num(eps)).ln()))
        };
        let rows: Vec<Vec<Num>> =
            x.naive.at.chunks(p).map(|row| row.iter().map(|&s| s * num(1.0 / temperature)).collect()).collect();
        let tokens = real.iter().filter(|&&m| m != 0).count();
        let of_tokens = sum((0..n * t).filter(|&i| real[i] != 0).map(|i| entropy(&rows[i])));
        let of_patches = sum((0..n * p).map(|k| {
            let (pair, patch) = (k / p, k % p);
            let places = (0..t).map(|i| pair * t + i).filter(|&i| real[i] != 0);
            entropy(&places.map(|i| rows[i][patch]).collect::<Vec<_>>())
        }));
        let at = vec![of_tokens * num(1.0 / tokens.max(1) as f64), of_patches * num(1.0 / (n * p) as f64)];
        self.keep("tier", x.tensor.tier(&mask, eps, temperature), Naive { dims: vec![2], at });
    }

    pub(super) fn bce_with_logits(&mut self) {
        let x = self.pick();
        if x.naive.at.is_empty() {
            return;
        }
        let (t, (known, counted)) = (self.of_dims(&x.naive.dims), self.mask(&x.naive.dims));
        // ln(1 + e^x), and its derivative.
        let softplus = |x: Num| x.map(x.v.max(0.0) + (-x.v.abs()).exp().ln_1p(), 1.0 / (1.0 + (-x.v).exp()));
        let of = |k: usize| softplus(x.naive.at[k]) - x.naive.at[k] * t.naive.at[k];
        let places: Vec<usize> = (0..counted.len()).filter(|&k| counted[k] != 0).collect();
        let y = sum(places.iter().map(|&k| of(k))) * num(1.0 / places.len().max(1) as f64);
        let tensor = apply(BceWithLogits, &[&x.tensor, &t.tensor, &known]);
        self.keep("bce_with_logits", tensor, Naive { dims: Vec::new(), at: vec![y] });
    }
}
