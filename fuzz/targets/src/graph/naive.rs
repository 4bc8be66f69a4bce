//! The ops once more, by their definitions, element by element: what the engine is compared with.

use super::num::{Num, num, sum};

/// Numbers in row-major order.
#[derive(Clone, Debug)]
pub struct Naive {
    pub dims: Vec<usize>,
    pub at: Vec<Num>,
}

/// Whether the result hung on a tie, where a derivative jumps.
pub type Tie = bool;

/// The index of element `k` of these dims.
pub fn unravel(mut k: usize, dims: &[usize]) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for (i, &d) in index.iter_mut().zip(dims).rev() {
        (*i, k) = (k % d, k / d);
    }
    index
}

fn with<T: Clone>(of: &[T], at: usize, value: T) -> Vec<T> {
    let mut out = of.to_vec();
    out[at] = value;
    out
}

impl Naive {
    /// The number at each index.
    pub fn build(dims: &[usize], mut at: impl FnMut(&[usize]) -> Num) -> Self {
        let n = dims.iter().product();
        Self { dims: dims.to_vec(), at: (0..n).map(|k| at(&unravel(k, dims))).collect() }
    }

    pub fn get(&self, index: &[usize]) -> Num {
        self.at[index.iter().zip(&self.dims).fold(0, |at, (i, d)| at * d + i)]
    }

    /// The number that broadcasting puts at an index of wider dims.
    pub fn wide(&self, index: &[usize]) -> Num {
        let index = &index[index.len() - self.dims.len()..];
        self.get(&index.iter().zip(&self.dims).map(|(&i, &d)| if d == 1 { 0 } else { i }).collect::<Vec<_>>())
    }

    pub fn map(&self, f: impl Fn(Num) -> Num) -> Self {
        Self { dims: self.dims.clone(), at: self.at.iter().map(|&x| f(x)).collect() }
    }

    pub fn zip(&self, o: &Self, f: impl Fn(Num, Num) -> Num) -> Self {
        Self::build(&broadcast(&self.dims, &o.dims), |i| f(self.wide(i), o.wide(i)))
    }

    pub fn reshape(&self, dims: &[usize]) -> Self {
        Self { dims: dims.to_vec(), at: self.at.clone() }
    }

    pub fn permute(&self, order: &[usize]) -> Self {
        let dims: Vec<usize> = order.iter().map(|&k| self.dims[k]).collect();
        Self::build(&dims, |i| {
            let mut from = vec![0; i.len()];
            order.iter().zip(i).for_each(|(&k, &i)| from[k] = i);
            self.get(&from)
        })
    }

    /// Element i of dimension `dim` is element `from(i)`; a zero where there is none.
    pub fn along(&self, dim: usize, size: usize, from: impl Fn(usize) -> Option<usize>) -> Self {
        Self::build(&with(&self.dims, dim, size), |i| from(i[dim]).map_or(num(0.0), |k| self.get(&with(i, dim, k))))
    }

    pub fn concat(&self, o: &Self, dim: usize) -> Self {
        let n = self.dims[dim];
        Self::build(&with(&self.dims, dim, n + o.dims[dim]), |i| {
            if i[dim] < n { self.get(i) } else { o.get(&with(i, dim, i[dim] - n)) }
        })
    }

    /// Every row along `dim` to a number; the dimension stays with size 1.
    pub fn reduce(&self, dim: usize, mut f: impl FnMut(&[Num]) -> Num) -> Self {
        Self::build(&with(&self.dims, dim, 1), |i| {
            f(&(0..self.dims[dim]).map(|k| self.get(&with(i, dim, k))).collect::<Vec<_>>())
        })
    }

    /// Every row along the last dimension to a row.
    pub fn rows(&self, mut f: impl FnMut(usize, &[Num]) -> Vec<Num>) -> Self {
        let n = self.dims[self.dims.len() - 1];
        let at = self.at.chunks(n.max(1)).enumerate().flat_map(|(i, row)| f(i, row)).collect();
        Self { dims: self.dims.clone(), at }
    }

    pub fn matmul(&self, o: &Self) -> Self {
        let [a, b] = [&self.dims, &o.dims].map(|d| d.split_at(d.len() - 2));
        let (front, k) = (broadcast(a.0, b.0), a.1[1]);
        let dims = [&front[..], &[a.1[0], b.1[1]]].concat();
        let (fa, fb) = (a.0.len(), b.0.len());
        // The batch dims broadcast, the matrices' do not, where they are 1 by being 1.
        let at = |x: &Self, batch: usize, i: &[usize], r: usize, c: usize| {
            let skip = front.len() - batch;
            let index: Vec<usize> =
                (0..batch).map(|j| if x.dims[j] == 1 { 0 } else { i[skip + j] }).chain([r, c]).collect();
            x.get(&index)
        };
        let n = front.len();
        Self::build(&dims, |i| sum((0..k).map(|j| at(self, fa, i, i[n], j) * at(o, fb, i, j, i[n + 1]))))
    }

    pub fn transposed(&self) -> Self {
        let n = self.dims.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.swap(n - 2, n - 1);
        self.permute(&order)
    }

    /// [n, h, w, c] and [out, in / groups, kh, kw].
    pub fn conv2d(&self, weight: &Self, bias: Option<&Self>, [stride, padding, dilation, groups]: [usize; 4]) -> Self {
        let [n, h, w, _] = [0, 1, 2, 3].map(|k| self.dims[k]);
        let [out, inner, kh, kw] = [0, 1, 2, 3].map(|k| weight.dims[k]);
        let grid = |size: usize, kernel: usize| (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
        Self::build(&[n, grid(h, kh), grid(w, kw), out], |i| {
            let mut y = bias.map_or(num(0.0), |b| b.at[i[3]]);
            for (a, b, c) in (0..kh).flat_map(|a| (0..kw).flat_map(move |b| (0..inner).map(move |c| (a, b, c)))) {
                let (r, s) = (i[1] * stride + a * dilation, i[2] * stride + b * dilation);
                if r >= padding && r - padding < h && s >= padding && s - padding < w {
                    let channel = i[3] / (out / groups) * inner + c;
                    y = y + self.get(&[i[0], r - padding, s - padding, channel]) * weight.get(&[i[3], c, a, b]);
                }
            }
            y
        })
    }

    /// The elements of each window of `kernel`, those of the padding left out, to a number.
    pub fn windows(&self, [kernel, stride, padding]: [[usize; 2]; 3], mut f: impl FnMut(&[Num]) -> Num) -> Self {
        let size = [1, 2].map(|k| (self.dims[k] + 2 * padding[k - 1] - kernel[k - 1]) / stride[k - 1] + 1);
        Self::build(&[self.dims[0], size[0], size[1], self.dims[3]], |i| {
            let places = |k: usize| {
                let start = i[k + 1] * stride[k];
                let last = self.dims[k + 1];
                (start..start + kernel[k]).filter_map(move |p| p.checked_sub(padding[k]).filter(|&p| p < last))
            };
            f(&places(0).flat_map(|r| places(1).map(move |c| self.get(&[i[0], r, c, i[3]]))).collect::<Vec<_>>())
        })
    }

    /// Dimension `dim` by a table of weights: element i is the sum of the named elements times their weights.
    pub fn resampled(&self, dim: usize, table: &[Vec<(usize, f64)>]) -> Self {
        Self::build(&with(&self.dims, dim, table.len()), |i| {
            // The weights are themselves rounded, at places of up to some dozens.
            sum(table[i[dim]].iter().map(|&(k, v)| self.get(&with(i, dim, k)) * Num { e: 8.0, ..num(v) }))
        })
    }
}

/// NumPy's rule; the caller knows that they fit.
pub fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let n = a.len().max(b.len());
    let at = |d: &[usize], k: usize| (k + d.len()).checked_sub(n).map_or(1, |k| d[k]);
    (0..n).map(|k| if at(a, k) == 1 { at(b, k) } else { at(a, k) }).collect()
}

/// The place of the largest (or smallest) number, the first of equals, and whether there are equals.
pub fn extreme(row: &[Num], largest: bool) -> (usize, Tie) {
    let better = |a: f64, b: f64| if largest { a > b } else { a < b };
    let best = (1..row.len()).fold(0, |best, k| if better(row[k].v, row[best].v) { k } else { best });
    (best, row.iter().filter(|x| x.v == row[best].v).count() > 1)
}

/// e^x / sum e^x.
pub fn softmax(row: &[Num]) -> Vec<Num> {
    if row.is_empty() {
        return Vec::new();
    }
    let top = num(row[extreme(row, true).0].v);
    let e: Vec<Num> = row.iter().map(|&x| (x - top).exp()).collect();
    let total = sum(e.iter().copied());
    e.iter().map(|&e| e / total).collect()
}

/// Softmax over some places; 0 elsewhere.
pub fn masked_softmax(row: &[Num], seen: impl Fn(usize) -> bool) -> Vec<Num> {
    let places: Vec<usize> = (0..row.len()).filter(|&k| seen(k)).collect();
    let mut out = vec![num(0.0); row.len()];
    let p = softmax(&places.iter().map(|&k| row[k]).collect::<Vec<_>>());
    places.iter().zip(p).for_each(|(&k, p)| out[k] = p);
    out
}

/// ln sum e^x.
pub fn logsumexp(row: &[Num]) -> Num {
    let top = num(row[extreme(row, true).0].v);
    sum(row.iter().map(|&x| (x - top).exp())).ln() + top
}

/// Mean and mean squared distance from it.
pub fn moments(row: &[Num]) -> (Num, Num) {
    let n = num(row.len() as f64);
    let mean = sum(row.iter().copied()) / n;
    (mean, sum(row.iter().map(|&x| (x - mean) * (x - mean))) / n)
}

/// (x - mean) / sqrt(var + eps) w + b
pub fn norm(x: Num, mean: Num, var: Num, [w, b]: [Num; 2], eps: f64) -> Num {
    (x - mean) / (var + num(eps)).sqrt() * w + b
}

/// Weights of PyTorch's `interpolate` with `align_corners=False`, without antialiasing.
pub fn interpolation(input: usize, output: usize, cubic: bool) -> Vec<Vec<(usize, f64)>> {
    let kernel = |x: f64| match x.abs() {
        x if x < 1.0 => (1.25 * x - 2.25) * x * x + 1.0,
        x if x < 2.0 => -0.75 * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    };
    let row = |i: usize| {
        let at = (i as f64 + 0.5) * input as f64 / output as f64 - 0.5;
        let at = if cubic { at } else { at.max(0.0) };
        let near = if cubic { -1..=2 } else { 0..=1 };
        let place = |k: i64| (at.floor() as i64 + k).clamp(0, input as i64 - 1) as usize;
        let weight = |k: i64| at - at.floor() - k as f64;
        near.map(|k| (place(k), if cubic { kernel(weight(k)) } else { (1.0 - weight(k).abs()).max(0.0) })).collect()
    };
    (0..output).map(row).collect()
}

/// Weights of means over parts as even as they can be.
pub fn parts(input: usize, output: usize) -> Vec<Vec<(usize, f64)>> {
    let part = |i: usize| i * input / output..((i + 1) * input).div_ceil(output);
    (0..output).map(|i| part(i).map(|k| (k, 1.0 / part(i).len() as f64)).collect()).collect()
}
