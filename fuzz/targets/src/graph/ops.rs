//! One op, drawn from the bytes, on both sides.

use tiergrad::Tensor;

use super::naive::{Naive, broadcast, extreme, logsumexp, moments, unravel};
use super::num::{Num, num, sum};
use super::{ELEMENTS, Graph, Value};

/// Ops that `Graph::step` knows.
pub const COUNT: usize = 45;

/// tanh(sqrt(2 / pi) (x + 0.044715 x^3)), inside GELU's approximation, with its derivative.
fn gelu_tanh(x: f64) -> (f64, f64) {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let t = (c * (x + 0.044715 * x.powi(3))).tanh();
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x))
}

/// The functions of one number: the engine's, and value and derivative by their formulas.
type Unary = (&'static str, fn(&Tensor) -> Tensor, fn(f64) -> (f64, f64));

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// x sigmoid(a x)
fn swish(a: f64, x: f64) -> (f64, f64) {
    let s = sigmoid(a * x);
    (x * s, s + a * x * s * (1.0 - s))
}

const UNARY: [Unary; 16] = [
    ("neg", Tensor::neg, |x| (-x, -1.0)),
    ("abs", Tensor::abs, |x| (x.abs(), x.signum())),
    ("exp", Tensor::exp, |x| (x.exp(), x.exp())),
    ("log", Tensor::log, |x| (x.ln(), 1.0 / x)),
    ("sqrt", Tensor::sqrt, |x| (x.sqrt(), 0.5 / x.sqrt())),
    ("rsqrt", Tensor::rsqrt, |x| (1.0 / x.sqrt(), -0.5 / (x * x.sqrt()))),
    ("recip", Tensor::recip, |x| (1.0 / x, -1.0 / (x * x))),
    ("square", Tensor::square, |x| (x * x, 2.0 * x)),
    ("tanh", Tensor::tanh, |x| (x.tanh(), 1.0 - x.tanh() * x.tanh())),
    ("erf", Tensor::erf, |x| (libm::erf(x), 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp())),
    ("gelu", Tensor::gelu, |x| {
        let cdf = 0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2));
        (x * cdf, cdf + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt())
    }),
    ("gelu_tanh", Tensor::gelu_tanh, gelu_tanh),
    ("quick_gelu", Tensor::quick_gelu, |x| swish(1.702, x)),
    ("relu", Tensor::relu, |x| (x.max(0.0), f64::from(u8::from(x > 0.0)))),
    ("sigmoid", Tensor::sigmoid, |x| (sigmoid(x), sigmoid(x) * (1.0 - sigmoid(x)))),
    ("silu", Tensor::silu, |x| swish(1.0, x)),
];

impl Graph<'_> {
    /// Draws an op, runs both sides and compares.
    pub fn step(&mut self) {
        match self.below(COUNT) {
            0 | 1 => self.unary(),
            2 => self.affine(),
            3 => self.clamp(),
            4 => self.powf(),
            5 | 6 => self.binary(),
            7 => self.select(),
            8 => self.sum(),
            9 => self.extreme(),
            10 => self.logsumexp(),
            11 => self.var(),
            12 => self.reshape(),
            13 | 14 => self.permute(),
            15 => self.narrow(),
            16 => self.stride(),
            17 => self.flip(),
            18 => self.broadcast_to(),
            19 => self.concat(),
            20 => self.pad(),
            21 | 22 => self.matmul(),
            23 => self.linear(),
            24 => self.softmax(),
            25 => self.masked_softmax(),
            26 => self.layer_norm(),
            27 => self.l2_normalise(),
            28 => self.batch_norm(),
            29 => self.conv2d(),
            30 => self.max_pool2d(),
            31 => self.avg_pool2d(),
            32 => self.adaptive_avg_pool2d(),
            33 => self.resize(),
            34 => self.embedding(),
            35 => self.gather(),
            36 => self.index_select(),
            37 => self.scatter_add(),
            38 => self.topk(),
            39 => self.attention(),
            40 => self.cross_entropy(),
            41 => self.contrastive(),
            42 => self.tier(),
            43 => self.bce_with_logits(),
            _ => self.dropout(),
        }
    }

    /// Something with at least one dimension, and one of its dimensions.
    fn with_dim(&mut self) -> (Value, usize) {
        let x = self.of_rank(1, 6);
        let dim = self.below(x.naive.dims.len());
        (x, dim)
    }

    /// Something whose last dimension is not empty.
    pub(super) fn with_rows(&mut self) -> (Value, usize) {
        let x = self.of_rank(1, 6);
        match x.naive.dims.last() {
            Some(&n) if n > 0 => (x, n),
            _ => (self.of_dims(&[2, 3]), 3),
        }
    }

    /// A map [n, h, w, c] of at least one place.
    pub(super) fn map(&mut self) -> Value {
        let x = self.of_rank(4, 4);
        if x.naive.dims[1] * x.naive.dims[2] > 0 {
            return x;
        }
        let dims = [1 + self.below(2), 1 + self.below(6), 1 + self.below(6), 1 + self.below(4)];
        self.of_dims(&dims)
    }

    pub(super) fn ids(&mut self, dims: &[usize], below: usize) -> (Tensor, Vec<usize>) {
        let n: usize = dims.iter().product();
        let ids: Vec<usize> = (0..n).map(|_| self.below(below)).collect();
        let tensor = Tensor::from_slice(&ids.iter().map(|&id| id as i64).collect::<Vec<_>>(), dims);
        (tensor, ids)
    }

    /// A mask, mostly ones.
    pub(super) fn mask(&mut self, dims: &[usize]) -> (Tensor, Vec<u8>) {
        let mask: Vec<u8> = (0..dims.iter().product()).map(|_| u8::from(self.below(4) != 3)).collect();
        (Tensor::from_slice(&mask, dims), mask)
    }

    fn unary(&mut self) {
        let x = self.pick();
        self.function_of(x);
    }

    fn function_of(&mut self, x: Value) {
        let (name, engine, formula) = UNARY[self.below(UNARY.len())];
        self.tie |= matches!(name, "abs" | "relu") && x.naive.at.iter().any(|x| x.v == 0.0);
        let naive = x.naive.map(|x| x.map(formula(x.v).0, formula(x.v).1));
        self.keep(name, engine(&x.tensor), naive);
    }

    /// What a plan may join to a product that was just made: something of its dims is added, made before or after it, or a function applied.
    pub(super) fn joined(&mut self) {
        for _ in 0..self.below(4) {
            let Some(x) = self.values.last().cloned() else { return };
            if self.flag() {
                self.function_of(x);
                continue;
            }
            let mut y = self.of_dims(&x.naive.dims);
            if self.below(4) == 0 {
                self.function_of(y);
                y = self.of_dims(&x.naive.dims);
            }
            let (a, b) = if self.flag() { (x, y) } else { (y, x) };
            if a.naive.dims == b.naive.dims {
                self.keep("add", a.tensor.add(&b.tensor), a.naive.zip(&b.naive, |a, b| a + b));
            }
        }
    }

    fn affine(&mut self) {
        let (x, [a, b]) = (self.pick(), [0, 1].map(|_| self.below(9) as f64 / 2.0 - 2.0));
        self.keep("affine", x.tensor.affine(a, b), x.naive.map(|x| x * num(a) + num(b)));
    }

    fn clamp(&mut self) {
        let x = self.pick();
        let (low, high) = (-0.5, self.below(8) as f64 / 4.0 - 0.5);
        self.tie |= x.naive.at.iter().any(|x| x.v == low || x.v == high);
        let inside = |x: Num| if (low..=high).contains(&x.v) { x } else { num(x.v.clamp(low, high)) };
        self.keep("clamp", x.tensor.clamp(low, high), x.naive.map(inside));
    }

    fn powf(&mut self) {
        let (x, p) = (self.pick(), [-1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 2.5][self.below(8)]);
        let slope = |x: f64| if p == 0.0 { 0.0 } else { p * x.powf(p - 1.0) };
        let raised = |x: Num| Num { e: 8.0 * x.map(x.v.powf(p), slope(x.v)).e, ..x.map(x.v.powf(p), slope(x.v)) };
        self.keep("powf", x.tensor.powf(p), x.naive.map(raised));
    }

    /// Two whose dims broadcast to few elements.
    fn two(&mut self) -> (Value, Value) {
        let (x, y) = (self.pick(), self.pick());
        let dims = broadcast(&x.naive.dims, &y.naive.dims);
        let fits = |d: &[usize]| {
            d.iter().rev().zip(dims.iter().rev()).all(|(&d, &all)| d == all || d == 1)
                && dims.iter().product::<usize>() <= ELEMENTS
        };
        if fits(&x.naive.dims) && fits(&y.naive.dims) { (x, y) } else { (x.clone(), x) }
    }

    fn binary(&mut self) {
        let ((x, y), op) = (self.two(), self.below(7));
        let smaller = |a: Num, b: Num, sign: f64| if sign * a.v < sign * b.v { a } else { b };
        if op == 6 && x.naive.at.iter().any(|x| x.v <= 0.0) {
            return;
        }
        self.tie |= matches!(op, 4 | 5) && {
            let same = x.naive.zip(&y.naive, |a, b| num(f64::from(u8::from(a.v == b.v))));
            same.at.iter().any(|x| x.v == 1.0)
        };
        let (a, b) = (&x.tensor, &y.tensor);
        let (name, tensor, naive) = match op {
            0 => ("add", a.add(b), x.naive.zip(&y.naive, |a, b| a + b)),
            1 => ("sub", a.sub(b), x.naive.zip(&y.naive, |a, b| a - b)),
            2 => ("mul", a.mul(b), x.naive.zip(&y.naive, |a, b| a * b)),
            3 => ("div", a.div(b), x.naive.zip(&y.naive, |a, b| a / b)),
            4 => ("minimum", a.minimum(b), x.naive.zip(&y.naive, |a, b| smaller(a, b, 1.0))),
            5 => ("maximum", a.maximum(b), x.naive.zip(&y.naive, |a, b| smaller(a, b, -1.0))),
            _ => ("pow", a.pow(b), x.naive.zip(&y.naive, |a, b| (b * a.ln()).exp())),
        };
        self.keep(name, tensor, naive);
    }

    /// A comparison, and a choice by it.
    fn select(&mut self) {
        let ((x, y), op) = (self.two(), self.below(6));
        let (a, b) = (&x.tensor, &y.tensor);
        let (mask, holds): (Tensor, fn(f64, f64) -> bool) = match op {
            0 => (a.eq(b), |a, b| a == b),
            1 => (a.ne(b), |a, b| a != b),
            2 => (a.lt(b), |a, b| a < b),
            3 => (a.le(b), |a, b| a <= b),
            4 => (a.gt(b), |a, b| a > b),
            _ => (a.ge(b), |a, b| a >= b),
        };
        let naive = x.naive.zip(&y.naive, |a, b| num(f64::from(u8::from(holds(a.v, b.v)))));
        let expected: Vec<f64> = naive.at.iter().map(|x| x.v).collect();
        assert!(self.again.is_some() || mask.to_f64_vec() == expected, "comparison {op}");
        let chosen =
            Naive::build(&naive.dims, |i| if naive.get(i).v != 0.0 { x.naive.wide(i) } else { y.naive.wide(i) });
        self.keep("select", mask.select(a, b), chosen);
    }

    fn sum(&mut self) {
        let (x, axes, keep, mean) = (self.pick(), self.byte(), self.flag(), self.flag());
        let axes: Vec<usize> = (0..x.naive.dims.len()).filter(|k| axes >> k & 1 == 1).collect();
        let n: usize = axes.iter().map(|&k| x.naive.dims[k]).product();
        let mut naive = axes.iter().fold(x.naive, |x, &k| x.reduce(k, |row| sum(row.iter().copied())));
        if !keep {
            let left: Vec<usize> = (0..naive.dims.len()).filter(|k| !axes.contains(k)).map(|k| naive.dims[k]).collect();
            naive = naive.reshape(&left);
        }
        let (name, tensor) = match mean {
            true => ("mean", x.tensor.mean(&axes, keep)),
            false => ("sum", x.tensor.sum(&axes, keep)),
        };
        self.keep(name, tensor, if mean { naive.map(|x| x * num(1.0 / n as f64)) } else { naive });
    }

    fn extreme(&mut self) {
        let ((x, dim), largest) = (self.with_dim(), self.flag());
        if x.naive.dims[dim] == 0 {
            return;
        }
        let (mut tie, mut places) = (false, Vec::new());
        let naive = x.naive.reduce(dim, |row| {
            let (place, tied) = extreme(row, largest);
            tie |= tied;
            places.push(place as i64);
            row[place]
        });
        self.tie |= tie;
        let (y, index) = if largest { x.tensor.max(dim as isize) } else { x.tensor.min(dim as isize) };
        if self.again.is_none() {
            assert_eq!(index.to_vec::<i64>(), places, "places of extremes");
            let largest = largest.then(|| x.tensor.detach().argmax(dim as isize).to_vec::<i64>());
            assert!(largest.is_none_or(|found| found == places), "argmax");
        }
        let mut left = x.naive.dims.clone();
        left.remove(dim);
        self.keep("extreme", y, naive.reshape(&left));
    }

    fn logsumexp(&mut self) {
        let (x, dim) = self.with_dim();
        if x.naive.dims[dim] > 0 {
            self.keep("logsumexp", x.tensor.logsumexp(dim as isize), x.naive.reduce(dim, logsumexp));
        }
    }

    fn var(&mut self) {
        let ((x, n), correction) = (self.with_rows(), self.below(2));
        if n > correction {
            let scale = num(n as f64 / (n - correction) as f64);
            let naive = x.naive.reduce(x.naive.dims.len() - 1, |row| moments(row).1 * scale);
            self.keep("var", x.tensor.var(correction), naive);
        }
    }

    fn reshape(&mut self) {
        let (x, how) = (self.pick(), self.byte());
        let n = x.naive.at.len();
        let sides: Vec<usize> = (1..=n.min(64)).filter(|d| n % d == 0).collect();
        let dims = match sides.get(how % (sides.len() + 1)) {
            Some(&d) => vec![d, n / d],
            None => vec![n],
        };
        self.keep("reshape", x.tensor.reshape(&dims[..]), x.naive.reshape(&dims));
    }

    fn permute(&mut self) {
        let x = self.pick();
        let mut order: Vec<usize> = (0..x.naive.dims.len()).collect();
        for k in (1..order.len()).rev() {
            let other = self.below(k + 1);
            order.swap(k, other);
        }
        self.keep("permute", x.tensor.permute(&order), x.naive.permute(&order));
    }

    fn narrow(&mut self) {
        let (x, dim) = self.with_dim();
        let start = self.below(x.naive.dims[dim] + 1);
        let len = self.below(x.naive.dims[dim] - start + 1);
        self.keep("narrow", x.tensor.narrow(dim, start, len), x.naive.along(dim, len, |i| Some(start + i)));
    }

    fn stride(&mut self) {
        let ((x, dim), step) = (self.with_dim(), self.below(4) + 1);
        let size = x.naive.dims[dim].div_ceil(step);
        self.keep("step", x.tensor.step(dim, step), x.naive.along(dim, size, |i| Some(i * step)));
    }

    fn flip(&mut self) {
        let (x, dim) = self.with_dim();
        let n = x.naive.dims[dim];
        self.keep("flip", x.tensor.flip(dim as isize), x.naive.along(dim, n, |i| Some(n - 1 - i)));
    }

    fn broadcast_to(&mut self) {
        let x = self.pick();
        let mut dims: Vec<usize> = x.naive.dims.iter().map(|&d| if d == 1 { 1 + self.below(5) } else { d }).collect();
        if dims.len() < 5 && self.flag() {
            dims.insert(0, 1 + self.below(3));
        }
        if dims.iter().product::<usize>() <= ELEMENTS {
            let naive = Naive::build(&dims, |i| x.naive.wide(i));
            self.keep("broadcast_to", x.tensor.broadcast_to(&dims[..]), naive);
        }
    }

    fn concat(&mut self) {
        let (x, dim) = self.with_dim();
        let mut dims = x.naive.dims.clone();
        dims[dim] = self.size();
        if dims.iter().product::<usize>() <= ELEMENTS {
            let y = self.of_dims(&dims);
            if y.naive.dims == dims {
                let tensor = Tensor::concat(&[&x.tensor, &y.tensor], dim as isize);
                self.keep("concat", tensor, x.naive.concat(&y.naive, dim));
            }
        }
    }

    fn pad(&mut self) {
        let ((x, dim), before, after) = (self.with_dim(), self.below(4), self.below(4));
        let n = x.naive.dims[dim];
        let naive = x.naive.along(dim, before + n + after, |i| i.checked_sub(before).filter(|&i| i < n));
        self.keep("pad", x.tensor.pad(dim, before, after), naive);
    }

    fn embedding(&mut self) {
        let x = self.of_rank(2, 2);
        let [rows, cols] = [x.naive.dims[0], x.naive.dims[1]];
        if rows == 0 || cols == 0 {
            return;
        }
        let dims = [self.below(4), 1 + self.below(3)];
        let (ids, places) = self.ids(&dims, rows);
        let naive = Naive::build(&[dims[0], dims[1], cols], |i| x.naive.get(&[places[i[0] * dims[1] + i[1]], i[2]]));
        self.keep("embedding", x.tensor.embedding(&ids), naive);
    }

    fn gather(&mut self) {
        let (x, dim) = self.with_dim();
        let n = x.naive.dims[dim];
        if n == 0 {
            return;
        }
        // The index may be smaller beside.
        let mut dims = x.naive.dims.clone();
        let least = self.below(8);
        dims.iter_mut().for_each(|d| *d = if least < 4 { (*d).min(least) } else { *d });
        dims[dim] = self.below(4);
        if dims.iter().product::<usize>() > ELEMENTS {
            return;
        }
        let (index, places) = self.ids(&dims, n);
        let mut k = 0;
        let naive = Naive::build(&dims, |i| {
            let mut from = i.to_vec();
            from[dim] = places[k];
            k += 1;
            x.naive.get(&from)
        });
        self.keep("gather", x.tensor.gather(dim as isize, &index), naive);
    }

    fn index_select(&mut self) {
        let ((x, dim), count) = (self.with_dim(), self.below(5));
        if x.naive.dims[dim] > 0 {
            let (index, places) = self.ids(&[count], x.naive.dims[dim]);
            let naive = x.naive.along(dim, count, |i| Some(places[i]));
            self.keep("index_select", x.tensor.index_select(dim as isize, &index), naive);
        }
    }

    fn scatter_add(&mut self) {
        let (x, dim) = self.with_dim();
        let n = x.naive.dims[dim];
        let mut dims = x.naive.dims.clone();
        dims[dim] = self.below(4);
        if n == 0 || dims.iter().product::<usize>() > ELEMENTS {
            return;
        }
        let src = self.of_dims(&dims);
        let (index, places) = self.ids(&dims, n);
        if src.naive.dims != dims {
            return;
        }
        let mut naive = x.naive.clone();
        for (k, &place) in places.iter().enumerate() {
            let mut to = unravel(k, &dims);
            to[dim] = place;
            let at = to.iter().zip(&naive.dims).fold(0, |at, (i, d)| at * d + i);
            naive.at[at] = naive.at[at] + src.naive.at[k];
        }
        self.keep("scatter_add", x.tensor.scatter_add(dim as isize, &index, &src.tensor), naive);
    }

    fn topk(&mut self) {
        let ((x, dim), largest) = (self.with_dim(), self.flag());
        let n = x.naive.dims[dim];
        let k = self.below(n + 1);
        let mut tie = false;
        let mut dims = x.naive.dims.clone();
        dims[dim] = k;
        let naive = Naive::build(&dims, |i| {
            let mut from = i.to_vec();
            let mut row: Vec<Num> = (0..n).map(|j| (from[dim] = j, x.naive.get(&from)).1).collect();
            row.sort_by(|a, b| if largest { b.v.total_cmp(&a.v) } else { a.v.total_cmp(&b.v) });
            tie |= row.windows(2).any(|pair| pair[0].v == pair[1].v);
            row[i[dim]]
        });
        self.tie |= tie;
        self.keep("topk", x.tensor.topk(k, dim as isize, largest).0, naive);
    }

    /// Which elements are dropped is the engine's to draw; the others are scaled.
    fn dropout(&mut self) {
        let (x, p, key) = (self.pick(), [0.25, 0.5][self.below(2)], self.byte() as u64);
        let factors = Tensor::full(&x.naive.dims[..], 1.0, tiergrad::DType::F64).dropout(p, key).to_f64_vec();
        assert!(factors.iter().all(|&f| f == 0.0 || f == 1.0 / (1.0 - p)), "dropout by {p}: {factors:?}");
        let at = x.naive.at.iter().zip(&factors).map(|(&x, &f)| x * num(f)).collect();
        self.keep("dropout", x.tensor.dropout(p, key), Naive { at, ..x.naive });
    }
}
