//! Elements taken by index, and added back.

use crate::device::Device;
use crate::error::Result;
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View};

impl Device {
    /// y[o, j, i] = x[o, index, i] for x of [outer, n, inner] and y of [outer, k, inner] elements, contiguous; x may be stored in half.
    /// `index` has k indices of 32 bits below n, or one for each element of y.
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
        let [(from, x_at), (to, y_at)] = [x.bind_stored(0)?, y.bind(2)?];
        let (indices, _) = Binding::words(1, index, 0, index.len() / 4)?;
        let push = [all, n, k, inner].map(|n| n as u32);
        let push = [&push[..], &[x_at, y_at]].concat();
        self.each(Shader::Gather, &[u32::from(full), x.stored as u32], &[from, indices, to.writing()], &push, all)
    }

    /// y[o, r, i] = base[o, r, i] + the sum of x[o, j, i] over the j of row r, in order, for x of [outer, k, inner] and y and base of
    /// [outer, n, inner] elements, contiguous. `rows` are from [`by_row`].
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn scatter_add(
        &self,
        x: View<'_>,
        rows: &Memory,
        base: Option<View<'_>>,
        [outer, n, inner]: [usize; 3],
        y: View<'_>,
    ) -> Result<()> {
        let k = (rows.len() / 4).checked_sub(n + 1).expect("scatter_add: places of rows");
        let whole = |v: &View<'_>| v.is_contiguous() && v.numel() == outer * n * inner;
        assert!(x.is_contiguous() && x.numel() == outer * k * inner, "scatter_add: {:?}", x.dims);
        assert!(whole(&y) && base.as_ref().is_none_or(whole), "scatter_add: {:?} to {:?}", x.dims, y.dims);
        if y.numel() == 0 {
            return Ok(());
        }
        let (to, y_at) = y.bind(3)?;
        let mut bindings = vec![to.writing(), Binding::words(1, rows, 0, rows.len() / 4)?.0];
        // Of nothing nothing is read.
        let mut place = |view: Option<View<'_>>, number| match view.filter(|v| v.numel() > 0) {
            Some(view) => view.bind(number).map(|(binding, at)| {
                bindings.push(binding);
                at
            }),
            None => Ok(0),
        };
        let (x_at, base_at) = (place(Some(x), 0)?, place(base, 2)?);
        let push = [outer * n * inner, n, k, inner].map(|n| n as u32);
        let push = [&push[..], &[x_at, base_at, y_at]].concat();
        self.each(Shader::Scatter, &[u32::from(base.is_some())], &bindings, &push, y.numel())
    }
}

/// For each of n rows where its places j (whose index is the row) begin, n + 1 numbers, and then the places, row by row and in order.
///
/// # Panics
/// If an index is not below n.
pub fn by_row(index: &[u32], n: usize) -> Vec<u32> {
    let mut out = vec![0u32; n + 1 + index.len()];
    let (starts, places) = out.split_at_mut(n + 1);
    index.iter().for_each(|&row| starts[row as usize + 1] += 1);
    (0..n).for_each(|row| starts[row + 1] += starts[row]);
    let mut next = starts.to_vec();
    for (j, &row) in (0u32..).zip(index) {
        places[next[row as usize] as usize] = j;
        next[row as usize] += 1;
    }
    out
}
