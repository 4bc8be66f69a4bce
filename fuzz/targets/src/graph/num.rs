//! Numbers that know their derivative along one direction, and how far rounding may have taken a computation from them.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number of the naive interpreter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Num {
    /// The value.
    pub v: f64,
    /// Its derivative along the direction in which the leaves move.
    pub d: f64,
    /// The same with every term taken as positive: what rounding may take of `d`, in units of epsilon.
    pub s: f64,
    /// First-order bound of what rounding does to it, in units of the element type's epsilon (running error analysis; Higham 2002,
    /// section 3.3).
    pub e: f64,
}

/// A number that does not move and is exact.
pub const fn num(v: f64) -> Num {
    Num { v, d: 0.0, s: 0.0, e: 0.0 }
}

/// Weight of the product of two errors, which is all that there is where both numbers are 0: the larger epsilon.
const SECOND: f64 = f32::EPSILON as f64;

impl Num {
    /// f(x), given f and its derivative there. Functions are approximated to about an epsilon of what they are made of, so that a value
    /// near 0 is not exact to its own last bit.
    pub fn map(self, f: f64, slope: f64) -> Self {
        let s = slope.abs() * self.s;
        Self { v: f, d: slope * self.d, s, e: slope.abs() * (self.e + self.v.abs()) + f.abs() + 1.0 }
    }

    pub fn exp(self) -> Self {
        let y = self.v.exp();
        self.map(y, y)
    }

    pub fn ln(self) -> Self {
        self.map(self.v.ln(), 1.0 / self.v)
    }

    pub fn sqrt(self) -> Self {
        let y = self.v.sqrt();
        self.map(y, 0.5 / y)
    }
}

impl Add for Num {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        let v = self.v + o.v;
        Self { v, d: self.d + o.d, s: self.s + o.s, e: self.e + o.e + v.abs() }
    }
}

impl Neg for Num {
    type Output = Self;
    fn neg(self) -> Self {
        Self { v: -self.v, d: -self.d, ..self }
    }
}

impl Sub for Num {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        self + -o
    }
}

impl Mul for Num {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        let v = self.v * o.v;
        let s = self.s * o.v.abs() + self.v.abs() * o.s;
        Self {
            v,
            d: self.d * o.v + self.v * o.d,
            s,
            e: self.e * o.v.abs() + self.v.abs() * o.e + v.abs() + SECOND * self.e * o.e,
        }
    }
}

impl Div for Num {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        let v = self.v / o.v;
        let s = (self.s + v.abs() * o.s) / o.v.abs();
        Self { v, d: (self.d - v * o.d) / o.v, s, e: (self.e + v.abs() * o.e) / o.v.abs() + v.abs() }
    }
}

/// The sum of numbers.
pub fn sum(all: impl IntoIterator<Item = Num>) -> Num {
    all.into_iter().fold(Num::default(), |a, b| a + b)
}
