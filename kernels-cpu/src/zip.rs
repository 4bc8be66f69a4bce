//! Elementwise functions of two strided views. Broadcasting is a stride of 0.

use crate::float::Float;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};
use crate::strided::{collapse, row_offset};
use crate::view::Strided;

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a b
    Mul,
    /// a / b
    Div,
    /// The smaller; NaN if one is.
    Min,
    /// The larger; NaN if one is.
    Max,
    /// a^b
    Pow,
}

impl Binary {
    /// Every function.
    pub const ALL: &'static [Self] = &[Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Min, Self::Max, Self::Pow];

    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Min => "minimum",
            Self::Max => "maximum",
            Self::Pow => "pow",
        }
    }
}

/// A comparison of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// a == b
    Eq,
    /// a != b
    Ne,
    /// a < b
    Lt,
    /// a <= b
    Le,
    /// a > b
    Gt,
    /// a >= b
    Ge,
}

impl Compare {
    /// Every comparison.
    pub const ALL: &'static [Self] = &[Self::Eq, Self::Ne, Self::Lt, Self::Le, Self::Gt, Self::Ge];

    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Lt => "lt",
            Self::Le => "le",
            Self::Gt => "gt",
            Self::Ge => "ge",
        }
    }
}

/// One row: `n` elements of each view from a start and with a step. A plain loop, compiled for the tier in use.
struct Row<'a, T, U, G> {
    a: (&'a [T], usize, isize),
    b: (&'a [T], usize, isize),
    out: &'a mut [U],
    f: G,
}

impl<T: Copy, U, G: Fn(T, T) -> U> SimdOp for Row<'_, T, U, G> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let (Self { a: (a, ia, sa), b: (b, ib, sb), out, f }, n) = (self, 0);
        let n = n + out.len();
        match (sa, sb) {
            (1, 1) => out.iter_mut().zip(&a[ia..ia + n]).zip(&b[ib..ib + n]).for_each(|((o, &x), &y)| *o = f(x, y)),
            (1, 0) => {
                let y = b[ib];
                out.iter_mut().zip(&a[ia..ia + n]).for_each(|(o, &x)| *o = f(x, y));
            }
            (0, 1) => {
                let x = a[ia];
                out.iter_mut().zip(&b[ib..ib + n]).for_each(|(o, &y)| *o = f(x, y));
            }
            _ => {
                for (i, o) in out.iter_mut().enumerate() {
                    let at = |start: usize, step: isize| (start as isize + i as isize * step) as usize;
                    *o = f(a[at(ia, sa)], b[at(ib, sb)]);
                }
            }
        }
    }
}

fn rows<T: Copy + Send + Sync, U: Send>(
    dims: &[usize],
    a: Strided<'_, T>,
    b: Strided<'_, T>,
    out: &mut [U],
    cost: usize,
    f: impl Fn(T, T) -> U + Copy + Sync,
) {
    assert_eq!(out.len(), dims.iter().product::<usize>(), "zip: length of the output");
    if out.is_empty() {
        return;
    }
    a.check(dims);
    b.check(dims);
    let (dims, [sa, sb]) = collapse(dims, [a.strides, b.strides]);
    let (row, last) = (dims[dims.len() - 1], dims.len() - 1);
    let place = |r: usize, from: usize| {
        let start = |v: &Strided<'_, T>, s: &[isize]| {
            (v.offset as isize + row_offset(r, &dims, s) + from as isize * s[last]) as usize
        };
        ((a.data, start(&a, &sa), sa[last]), (b.data, start(&b, &sb), sb[last]))
    };
    if dims.len() == 1 {
        let out = Shared::new(out);
        return par::for_each(row, cost, |range| {
            let (a, b) = place(0, range.start);
            // SAFETY: the ranges are disjoint.
            dispatch(Row { a, b, out: unsafe { out.slice(range) }, f });
        });
    }
    par::chunks_mut(out, row, row * cost, |r, out| {
        let (a, b) = place(r, 0);
        dispatch(Row { a, b, out, f });
    });
}

/// out = f(a, b), row-major.
///
/// # Panics
/// If a view leaves its data, or `out` has another length than `dims`.
pub fn zip<F: Float>(op: Binary, dims: &[usize], a: Strided<'_, F>, b: Strided<'_, F>, out: &mut [F]) {
    match op {
        Binary::Add => rows(dims, a, b, out, 1, |x, y| x + y),
        Binary::Sub => rows(dims, a, b, out, 1, |x, y| x - y),
        Binary::Mul => rows(dims, a, b, out, 1, |x, y| x * y),
        Binary::Div => rows(dims, a, b, out, 4, |x, y| x / y),
        Binary::Min => rows(dims, a, b, out, 1, |x, y| if x < y || x.is_nan() { x } else { y }),
        Binary::Max => rows(dims, a, b, out, 1, |x, y| if x > y || x.is_nan() { x } else { y }),
        Binary::Pow => rows(dims, a, b, out, 32, |x: F, y| x.powf(y)),
    }
}

/// out = 1 where the comparison holds, else 0.
pub fn compare<T: Copy + PartialOrd + Send + Sync>(
    op: Compare,
    dims: &[usize],
    a: Strided<'_, T>,
    b: Strided<'_, T>,
    out: &mut [u8],
) {
    match op {
        Compare::Eq => rows(dims, a, b, out, 1, |x, y| u8::from(x == y)),
        Compare::Ne => rows(dims, a, b, out, 1, |x, y| u8::from(x != y)),
        Compare::Lt => rows(dims, a, b, out, 1, |x, y| u8::from(x < y)),
        Compare::Le => rows(dims, a, b, out, 1, |x, y| u8::from(x <= y)),
        Compare::Gt => rows(dims, a, b, out, 1, |x, y| u8::from(x > y)),
        Compare::Ge => rows(dims, a, b, out, 1, |x, y| u8::from(x >= y)),
    }
}

/// out = a where the mask is not 0, else b.
pub fn select<F: Float>(dims: &[usize], mask: Strided<'_, u8>, a: Strided<'_, F>, b: Strided<'_, F>, out: &mut [F]) {
    assert_eq!(out.len(), dims.iter().product::<usize>(), "select: length of the output");
    if out.is_empty() {
        return;
    }
    mask.check(dims);
    a.check(dims);
    b.check(dims);
    let (dims, [sm, sa, sb]) = collapse(dims, [mask.strides, a.strides, b.strides]);
    let (row, last) = (dims[dims.len() - 1], dims.len() - 1);
    par::chunks_mut(out, row, row * 2, |r, out| {
        let start = |offset: usize, s: &[isize]| offset as isize + row_offset(r, &dims, s);
        let (m, x, y) = (start(mask.offset, &sm), start(a.offset, &sa), start(b.offset, &sb));
        for (i, o) in out.iter_mut().enumerate() {
            let at = |start: isize, s: &[isize]| (start + i as isize * s[last]) as usize;
            *o = if mask.data[at(m, &sm)] != 0 { a.data[at(x, &sa)] } else { b.data[at(y, &sb)] };
        }
    });
}

/// acc += x.
pub fn add_assign<F: Float>(acc: &mut [F], x: &[F]) {
    axpy(acc, F::ONE, x);
}

/// acc += a x.
///
/// # Panics
/// If the lengths differ.
pub fn axpy<F: Float>(acc: &mut [F], a: F, x: &[F]) {
    struct Axpy<'a, F>(&'a mut [F], F, &'a [F]);
    impl<F: Float> SimdOp for Axpy<'_, F> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd>(self, _: S) {
            self.0.iter_mut().zip(self.2).for_each(|(y, &x)| *y += self.1 * x);
        }
    }
    assert_eq!(acc.len(), x.len(), "axpy: lengths");
    let shared = Shared::new(acc);
    // SAFETY: the ranges are disjoint.
    par::for_each(x.len(), 2, |range| dispatch(Axpy(unsafe { shared.slice(range.clone()) }, a, &x[range])));
}

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::testing::{Drawn, on_every_tier};
    use alloc::vec;
    use alloc::vec::Vec;

    /// Few values, so that there are ties, with NaN and infinities among them.
    fn value(rng: &mut Rng) -> f64 {
        [-1.5, -0.0, 0.0, 0.5, 2.0, 2.5, f64::NAN, f64::INFINITY][rng.below(8)]
    }

    fn define(op: Binary, x: f64, y: f64) -> f64 {
        match op {
            Binary::Add => x + y,
            Binary::Sub => x - y,
            Binary::Mul => x * y,
            Binary::Div => x / y,
            Binary::Min | Binary::Max if x.is_nan() || y.is_nan() => f64::NAN,
            Binary::Min => x.min(y),
            Binary::Max => x.max(y),
            Binary::Pow => libm::pow(x, y),
        }
    }

    fn same(a: f64, b: f64) -> bool {
        a == b || a.is_nan() && b.is_nan()
    }

    /// Drawn dims and layouts, small ones many times; and rows that several threads share.
    fn drawn(check: impl Fn(&mut Rng, &[usize]) + Sync) {
        on_every_tier(|_| {
            let mut rng = Rng::new(11, 0);
            for _ in 0..120 {
                let rank = rng.below(5);
                let dims: Vec<usize> = (0..rank).map(|_| rng.below(6)).collect();
                check(&mut rng, &dims);
            }
            for dims in [&[200_001][..], &[37], &[3, 40_001], &[40_001, 3], &[1, 1]] {
                (0..3).for_each(|_| check(&mut rng, dims));
            }
        });
    }

    #[test]
    fn any_layout_gives_what_each_pair_of_elements_gives() {
        drawn(|rng, dims| {
            let (a, b) = (Drawn::new(rng, dims, true, value), Drawn::new(rng, dims, true, value));
            let op = Binary::ALL[rng.below(Binary::ALL.len())];
            let pairs: Vec<(f64, f64)> = a.elements(dims).into_iter().zip(b.elements(dims)).collect();
            let mut out = vec![7.0; pairs.len()];
            zip(op, dims, a.view(), b.view(), &mut out);
            assert!(out.iter().zip(&pairs).all(|(&o, &(x, y))| same(o, define(op, x, y))), "{} {dims:?}", op.name());
            let comparison = Compare::ALL[rng.below(Compare::ALL.len())];
            let mut out = vec![7; pairs.len()];
            compare(comparison, dims, a.view(), b.view(), &mut out);
            let expected = |(x, y): (f64, f64)| match comparison {
                Compare::Eq => x == y,
                Compare::Ne => x != y,
                Compare::Lt => x < y,
                Compare::Le => x <= y,
                Compare::Gt => x > y,
                Compare::Ge => x >= y,
            };
            assert!(out.iter().zip(&pairs).all(|(&o, &p)| o == u8::from(expected(p))), "{comparison:?} {dims:?}");
        });
    }

    #[test]
    fn a_mask_chooses_in_any_layout() {
        drawn(|rng, dims| {
            let (a, b) = (Drawn::new(rng, dims, true, value), Drawn::new(rng, dims, true, value));
            let mask = Drawn::new(rng, dims, true, |rng| rng.below(3) as u8);
            let mut out = vec![7.0; dims.iter().product()];
            select(dims, mask.view(), a.view(), b.view(), &mut out);
            let expected = mask.elements(dims).into_iter().zip(a.elements(dims).into_iter().zip(b.elements(dims)));
            assert!(out.iter().zip(expected).all(|(&o, (m, (x, y)))| same(o, if m == 0 { y } else { x })), "{dims:?}");
        });
    }

    #[test]
    fn sums_are_added_to() {
        on_every_tier(|isa| {
            for n in [0, 1, 17, 70_001] {
                let x: Vec<f32> = (0..n).map(|k| (k % 11) as f32 - 5.0).collect();
                let mut acc: Vec<f32> = (0..n).map(|k| (k % 7) as f32).collect();
                axpy(&mut acc, -2.0, &x);
                add_assign(&mut acc, &x);
                let right = |(k, &y): (usize, &f32)| y == (k % 7) as f32 - ((k % 11) as f32 - 5.0);
                assert!(acc.iter().enumerate().all(right), "{isa} {n}");
            }
        });
    }

    /// The names are what graphs, errors and reports call them; no two may be the same.
    #[test]
    fn names_are_those_of_the_field() {
        let names: Vec<&str> =
            Binary::ALL.iter().map(|op| op.name()).chain(Compare::ALL.iter().map(|op| op.name())).collect();
        assert_eq!(
            names,
            ["add", "sub", "mul", "div", "minimum", "maximum", "pow", "eq", "ne", "lt", "le", "gt", "ge"]
        );
    }
}
