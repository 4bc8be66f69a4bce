//! Products, softmax, norms, maps and attention on both sides.

use tiergrad::ops::attention::{Attention, attention};
use tiergrad::ops::conv::Conv2d;
use tiergrad::ops::pool::{AvgPool2d, Window};
use tiergrad::ops::resize::Filter;

use super::naive::{Naive, extreme, interpolation, logsumexp, masked_softmax, moments, norm, parts, softmax};
use super::num::{Num, num, sum};
use super::{ELEMENTS, Graph, Value};

impl Graph<'_> {
    pub(super) fn matmul(&mut self) {
        let (x, n) = (self.of_rank(2, 4), self.size());
        let d = &x.naive.dims;
        let mut dims = vec![d[d.len() - 1], n];
        if d.len() > 2 && self.flag() {
            dims.insert(0, if self.flag() { d[d.len() - 3] } else { 1 });
        }
        if dims.iter().product::<usize>() > ELEMENTS || d[..d.len() - 1].iter().product::<usize>() * n > ELEMENTS {
            return;
        }
        let turned = self.flag();
        let last = dims.len() - 1;
        if turned {
            dims.swap(last - 1, last);
        }
        let y = self.of_dims(&dims);
        if y.naive.dims != dims {
            return;
        }
        let y = match turned {
            true => Value { tensor: y.tensor.transpose(-2, -1), naive: y.naive.transposed() },
            false => y,
        };
        self.keep("matmul", x.tensor.matmul(&y.tensor), x.naive.matmul(&y.naive));
    }

    pub(super) fn linear(&mut self) {
        let (x, out, biased) = (self.of_rank(1, 4), self.size(), self.flag());
        let input = x.naive.dims[x.naive.dims.len() - 1];
        let rows = x.naive.at.len() / input.max(1);
        if out * input.max(rows) > ELEMENTS || input == 0 {
            return;
        }
        let (w, b) = (self.of_dims(&[out, input]), self.of_dims(&[out]));
        let tensor = x.tensor.linear(&w.tensor, biased.then_some(&b.tensor), None);
        let mut naive = x.naive.reshape(&[rows, input]).matmul(&w.naive.transposed());
        if biased {
            naive = naive.zip(&b.naive, |a, b| a + b);
        }
        let mut dims = x.naive.dims;
        let last = dims.len() - 1;
        dims[last] = out;
        self.keep("linear", tensor, naive.reshape(&dims));
        self.joined();
    }

    pub(super) fn softmax(&mut self) {
        let ((x, _), log) = (self.with_rows(), self.flag());
        if log {
            let naive = x.naive.rows(|_, row| {
                let total = logsumexp(row);
                row.iter().map(|&x| x - total).collect()
            });
            self.keep("log_softmax", x.tensor.log_softmax(), naive);
        } else {
            self.keep("softmax", x.tensor.softmax(), x.naive.rows(|_, row| softmax(row)));
        }
    }

    pub(super) fn masked_softmax(&mut self) {
        let x = self.of_rank(2, 2);
        let [rows, cols] = [x.naive.dims[0], x.naive.dims[1]];
        let each = if rows > 0 && rows % 2 == 0 { 2 } else { 1 };
        if rows == 0 {
            return;
        }
        let (mask, seen) = self.mask(&[rows / each, cols]);
        let naive = x.naive.rows(|i, row| masked_softmax(row, |k| seen[i / each * cols + k] != 0));
        self.keep("masked_softmax", x.tensor.masked_softmax(&mask), naive);
    }

    pub(super) fn layer_norm(&mut self) {
        let (x, n) = self.with_rows();
        let (w, b) = (self.of_dims(&[n]), self.of_dims(&[n]));
        let naive = x.naive.rows(|_, row| {
            let (mean, var) = moments(row);
            (0..n).map(|k| norm(row[k], mean, var, [w.naive.at[k], b.naive.at[k]], 1e-3)).collect()
        });
        self.keep("layer_norm", x.tensor.layer_norm(&w.tensor, &b.tensor, 1e-3), naive);
    }

    pub(super) fn l2_normalise(&mut self) {
        let (x, _) = self.with_rows();
        // The length is at least 1e-12, which is a kink that only rows of zeros come near.
        let zero = |row: &[Num]| row.iter().map(|x| x.v * x.v).sum::<f64>() < 1e-20;
        let n = x.naive.dims[x.naive.dims.len() - 1];
        if x.naive.at.chunks(n).any(zero) {
            return;
        }
        let naive = x.naive.rows(|_, row| {
            let length = sum(row.iter().map(|&x| x * x)).sqrt();
            row.iter().map(|&x| x / length).collect()
        });
        self.keep("l2_normalise", x.tensor.l2_normalise(), naive);
    }

    pub(super) fn batch_norm(&mut self) {
        let ((x, c), given) = (self.with_rows(), self.flag());
        let rows = x.naive.at.len() / c;
        let (w, b) = (self.of_dims(&[c]), self.of_dims(&[c]));
        let flat = x.naive.reshape(&[rows, c]);
        let of = |k: usize| [w.naive.at[k], b.naive.at[k]];
        if given {
            // They get no gradient.
            let (mean, var) = (self.of_dims(&[c]), self.of_dims(&[c]));
            let var = var.tensor.detach().square();
            let fixed = match self.again {
                None => [mean.tensor.to_f64_vec(), var.to_f64_vec()],
                Some(_) => [vec![0.0; c], vec![0.0; c]],
            };
            let naive = flat
                .rows(|_, row| (0..c).map(|k| norm(row[k], num(fixed[0][k]), num(fixed[1][k]), of(k), 1e-3)).collect());
            let tensor = x.tensor.batch_norm(&w.tensor, &b.tensor, &mean.tensor.detach(), &var, 1e-3);
            self.keep("batch_norm", tensor, naive.reshape(&x.naive.dims));
        } else if rows > 1 {
            let all: Vec<_> =
                (0..c).map(|k| moments(&flat.at.iter().skip(k).step_by(c).copied().collect::<Vec<_>>())).collect();
            let naive = flat.rows(|_, row| (0..c).map(|k| norm(row[k], all[k].0, all[k].1, of(k), 1e-3)).collect());
            let (tensor, [mean, var]) = x.tensor.batch_norm_train(&w.tensor, &b.tensor, 1e-3);
            if self.again.is_none() {
                let unbiased = num(rows as f64 / (rows as f64 - 1.0));
                let dims = vec![c];
                self.compare(
                    "mean of a batch",
                    &mean,
                    &Naive { dims: dims.clone(), at: all.iter().map(|x| x.0).collect() },
                );
                self.compare(
                    "variance of a batch",
                    &var,
                    &Naive { dims, at: all.iter().map(|x| x.1 * unbiased).collect() },
                );
            }
            self.keep("batch_norm of a batch", tensor, naive.reshape(&x.naive.dims));
        }
    }

    pub(super) fn conv2d(&mut self) {
        let x = self.map();
        let [n, h, w, c] = [0, 1, 2, 3].map(|k| x.naive.dims[k]);
        let [kernel, stride, padding, dilation] =
            [1 + self.below(3), 1 + self.below(3), self.below(3), 1 + self.below(2)];
        let groups = if c > 0 && self.flag() { c } else { 1 };
        let out = groups * (1 + self.below(4));
        if dilation * (kernel - 1) + 1 > h.min(w) + 2 * padding || c > 40 || n * h * w * out > 4 * ELEMENTS {
            return;
        }
        let (weight, bias) = (self.of_dims(&[out, c / groups, kernel, kernel]), self.of_dims(&[out]));
        let bias = self.flag().then_some(bias);
        let options = Conv2d { stride: [stride; 2], padding: [padding; 2], dilation: [dilation; 2], groups };
        let tensor = x.tensor.conv2d(&weight.tensor, bias.as_ref().map(|b| &b.tensor), options);
        let naive = x.naive.conv2d(&weight.naive, bias.as_ref().map(|b| &b.naive), [stride, padding, dilation, groups]);
        self.keep("conv2d", tensor, naive);
        self.joined();
    }

    /// Kernel, stride and padding that fit a map.
    pub(super) fn window(&mut self, x: &Naive) -> Option<[[usize; 2]; 3]> {
        let kernel = [1 + self.below(3), 1 + self.below(3)];
        let stride = [1 + self.below(3), 1 + self.below(3)];
        let padding = kernel.map(|k| self.below(k / 2 + 1));
        (0..2).all(|k| kernel[k] <= x.dims[k + 1] + 2 * padding[k]).then_some([kernel, stride, padding])
    }

    pub(super) fn max_pool2d(&mut self) {
        let x = self.map();
        let Some(shape @ [kernel, stride, padding]) = self.window(&x.naive) else { return };
        let (mut tie, mut empty) = (false, false);
        let naive = x.naive.windows(shape, |seen| {
            empty |= seen.is_empty();
            let (place, tied) = if seen.is_empty() { (0, true) } else { extreme(seen, true) };
            tie |= tied;
            seen.get(place).copied().unwrap_or_default()
        });
        if !empty {
            self.tie |= tie;
            self.keep("max_pool2d", x.tensor.max_pool2d(Window { kernel, stride, padding, dilation: [1; 2] }), naive);
        }
    }

    pub(super) fn avg_pool2d(&mut self) {
        let (x, count_include_pad) = (self.map(), self.flag());
        let Some(shape @ [kernel, stride, padding]) = self.window(&x.naive) else { return };
        let naive = x.naive.windows(shape, |seen| {
            let n = if count_include_pad { kernel[0] * kernel[1] } else { seen.len() };
            sum(seen.iter().copied()) * num(1.0 / n as f64)
        });
        self.keep("avg_pool2d", x.tensor.avg_pool2d(AvgPool2d { kernel, stride, padding, count_include_pad }), naive);
    }

    pub(super) fn adaptive_avg_pool2d(&mut self) {
        let (x, size) = (self.map(), [1 + self.below(5), 1 + self.below(5)]);
        let naive = (0..2).fold(x.naive.clone(), |y, k| y.resampled(k + 1, &parts(x.naive.dims[k + 1], size[k])));
        self.keep("adaptive_avg_pool2d", x.tensor.adaptive_avg_pool2d(size), naive);
    }

    pub(super) fn resize(&mut self) {
        let (x, size, cubic) = (self.map(), [1 + self.below(8), 1 + self.below(8)], self.flag());
        let table = |k: usize| interpolation(x.naive.dims[k + 1], size[k], cubic);
        let naive = (0..2).fold(x.naive.clone(), |y, k| y.resampled(k + 1, &table(k)));
        let filter = if cubic { Filter::Bicubic } else { Filter::Bilinear };
        self.keep("resize", x.tensor.resize(size, filter, false), naive);
    }

    pub(super) fn attention(&mut self) {
        let [b, h, d] = [1 + self.below(2), 1 + self.below(2), 1 + self.below(9)];
        let (tk, causal, masked) = (self.below(7), self.flag(), self.flag());
        let tq = if causal { tk } else { self.below(5) };
        let q = self.of_dims(&[b, h, tq, d]);
        let (k, v) = (self.of_dims(&[b, h, tk, d]), self.of_dims(&[b, h, tk, d]));
        let (mask, seen) = self.mask(&[b, tk]);
        let options = Attention { causal, dropout: None };
        let tensor = attention(&q.tensor, &k.tensor, &v.tensor, masked.then_some(&mask), options);
        let scale = num(1.0 / (d as f64).sqrt());
        let scores = q.naive.matmul(&k.naive.transposed()).map(|x| x * scale);
        let sees =
            |row: usize, key: usize| (!causal || key <= row % tq) && (!masked || seen[row / (h * tq) * tk + key] != 0);
        let naive = scores.rows(|i, row| masked_softmax(row, |key| sees(i, key))).matmul(&v.naive);
        self.keep("attention", tensor, naive.permute(&[0, 2, 1, 3]));
    }
}
