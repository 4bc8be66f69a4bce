//! Element by element: copies, functions of one and of two, elements by index.

use kernels_cpu::map::Unary;
use kernels_cpu::zip::Binary;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View, merged};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// One of the common ones.
    Unary(Unary),
    /// a x + b
    Affine(f32, f32),
    /// min(max(x, low), high); NaN stays.
    Clamp(f32, f32),
}

fn signed(words: [i32; 6]) -> [u32; 6] {
    words.map(|word| word as u32)
}

impl Device {
    /// y = x, of the same dims in any layouts. Words of 32 bits, whatever they mean.
    ///
    /// # Errors
    /// As all kernels: [`Error::Limit`] where the views are more than the device takes, and if it is lost.
    pub fn copy(&self, x: View<'_>, y: View<'_>) -> Result<()> {
        assert_eq!(x.dims, y.dims, "copy: dims");
        if x.numel() == 0 {
            return Ok(());
        }
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(1)?];
        let m = merged([&x, &y]);
        let [xs, ys] = m.strides.map(signed);
        let n = x.numel();
        let push = [&[n as u32, x_at, y_at, m.rank][..], &m.dims, &xs, &ys].concat();
        self.each(Shader::Copy, &[], &[from, to.writing()], &push, n)
    }

    /// y = f(x) with y contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn map(&self, f: Function, x: View<'_>, y: View<'_>) -> Result<()> {
        assert!(x.dims == y.dims && y.is_contiguous(), "map: {:?} to {:?}", x.dims, y.dims);
        if x.numel() == 0 {
            return Ok(());
        }
        let (code, a, b) = match f {
            Function::Unary(f) => (f as u32, 0.0, 0.0),
            Function::Affine(a, b) => (100, a, b),
            Function::Clamp(low, high) => (101, low, high),
        };
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(1)?];
        let m = merged([&x]);
        let n = x.numel();
        let tail = [a.to_bits(), b.to_bits()];
        let push = [&[n as u32, x_at, y_at, m.rank][..], &m.dims, &signed(m.strides[0]), &tail].concat();
        self.each(Shader::Map, &[code], &[from, to.writing()], &push, n)
    }

    /// y = f(a, b) with y contiguous; a and b have its dims, stretched where their strides are 0. There is no power.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn zip(&self, f: Binary, a: View<'_>, b: View<'_>, y: View<'_>) -> Result<()> {
        assert!(a.dims == y.dims && b.dims == y.dims && y.is_contiguous(), "zip: {:?} and {:?}", a.dims, b.dims);
        if f == Binary::Pow {
            return Err(Error::Limit("no kernel of powers".to_owned()));
        }
        if y.numel() == 0 {
            return Ok(());
        }
        let [(left, a_at), (right, b_at), (to, y_at)] = [a.bind(0)?, b.bind(1)?, y.bind(2)?];
        let m = merged([&a, &b]);
        let [sa, sb] = m.strides.map(signed);
        let n = y.numel();
        let push = [&[n as u32, a_at, b_at, y_at, m.rank][..], &m.dims, &sa, &sb].concat();
        self.each(Shader::Zip, &[f as u32], &[left, right, to.writing()], &push, n)
    }

    /// y[o, j, i] = x[o, index, i] for x of [outer, n, inner] and y of [outer, k, inner] elements, contiguous. `index` has k indices
    /// of 32 bits below n, or one for each element of y.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn gather(
        &self,
        x: View<'_>,
        [outer, n, inner]: [usize; 3],
        index: &Memory,
        k: usize,
        y: View<'_>,
    ) -> Result<()> {
        let all = outer * k * inner;
        assert!(x.is_contiguous() && y.is_contiguous(), "gather: layouts");
        assert!(x.numel() == outer * n * inner && y.numel() == all, "gather: {:?} to {:?}", x.dims, y.dims);
        let full = index.len() == 4 * all && k != all;
        assert!(full || index.len() == 4 * k, "gather: {} bytes of indices", index.len());
        if all == 0 {
            return Ok(());
        }
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(2)?];
        let (indices, _) = Binding::words(1, index, 0, index.len() / 4)?;
        let push = [all, n, k, inner].map(|n| n as u32);
        let push = [&push[..], &[x_at, y_at]].concat();
        self.each(Shader::Gather, &[u32::from(full)], &[from, indices, to.writing()], &push, all)
    }
}
