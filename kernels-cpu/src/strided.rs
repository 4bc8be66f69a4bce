//! Copies between layouts.

use alloc::vec::Vec;
use core::ops::Range;

use crate::par::{self, Shared};
use crate::view::Strided;

/// The same positions with fewer dimensions: sizes of 1 dropped, neighbours that step evenly joined.
/// Several stride lists (for several tensors of the same dims) are kept in step.
pub(crate) fn collapse<const N: usize>(dims: &[usize], strides: [&[isize]; N]) -> (Vec<usize>, [Vec<isize>; N]) {
    let mut out_dims: Vec<usize> = Vec::new();
    let mut out: [Vec<isize>; N] = core::array::from_fn(|_| Vec::new());
    for (k, &d) in dims.iter().enumerate() {
        if d == 1 {
            continue;
        }
        let joins = !out_dims.is_empty() && (0..N).all(|n| out[n].last().copied() == Some(strides[n][k] * d as isize));
        if joins {
            *out_dims.last_mut().expect("not empty") *= d;
            (0..N).for_each(|n| *out[n].last_mut().expect("not empty") = strides[n][k]);
        } else {
            out_dims.push(d);
            (0..N).for_each(|n| out[n].push(strides[n][k]));
        }
    }
    if out_dims.is_empty() {
        out_dims.push(1);
        out.iter_mut().for_each(|s| s.push(0));
    }
    (out_dims, out)
}

/// Position of row `row` (all dimensions but the last, row-major) from the start.
#[inline(always)]
pub(crate) fn row_offset(mut row: usize, dims: &[usize], strides: &[isize]) -> isize {
    let mut offset = 0;
    for k in (0..dims.len() - 1).rev() {
        offset += (row % dims[k]) as isize * strides[k];
        row /= dims[k];
    }
    offset
}

/// Calls `f` with each of some rows and where it starts. Along the dimension before theirs rows follow each other evenly: divisions for each of them
/// would take longer than a short one.
#[inline(always)]
fn each_row(rows: Range<usize>, dims: &[usize], strides: &[isize], offset: usize, mut f: impl FnMut(usize, isize)) {
    let (even, apart) = match dims.len() {
        1 => (1, 0),
        n => (dims[n - 2], strides[n - 2]),
    };
    let (mut start, mut left) = (0, 0);
    for r in rows {
        if left == 0 {
            start = offset as isize + row_offset(r, dims, strides);
            left = even - r % even;
        }
        f(r, start);
        (start, left) = (start + apart, left - 1);
    }
}

fn check<T>(dims: &[usize], data: &[T], offset: usize, strides: &[isize]) {
    let (mut low, mut high) = (offset as isize, offset as isize);
    for (&d, &s) in dims.iter().zip(strides) {
        let reach = (d as isize - 1) * s;
        low += reach.min(0);
        high += reach.max(0);
    }
    assert!(
        low >= 0 && (high as usize) < data.len(),
        "strided view {dims:?} {strides:?} from {offset} leaves {} elements",
        data.len()
    );
}

impl<T> Strided<'_, T> {
    /// Asserts that every element is inside the data.
    pub(crate) fn check(&self, dims: &[usize]) {
        assert_eq!(dims.len(), self.strides.len(), "one stride per dimension");
        check(dims, self.data, self.offset, self.strides);
    }
}

/// Rows of fewer elements than these are short.
const SHORT_ROW: usize = 16;

/// The elements of `src` in row-major order.
///
/// # Panics
/// If `out` has another length, or the view leaves its data.
pub fn copy<T: Copy + Send + Sync>(dims: &[usize], src: Strided<'_, T>, out: &mut [T]) {
    assert_eq!(out.len(), dims.iter().product::<usize>(), "copy: length of the output");
    if out.is_empty() {
        return;
    }
    src.check(dims);
    let (dims, [strides]) = collapse(dims, [src.strides]);
    let (row, step) = (dims[dims.len() - 1], strides[strides.len() - 1]);
    if let ([.., rows, _], [.., 1, _], ..SHORT_ROW) = (&dims[..], &strides[..], row) {
        // The columns of a short row lie along memory: as channels do that become the last dimension.
        return par::chunks_mut(out, rows * row, rows * row * 2, |r, out| {
            let start = src.offset as isize + row_offset(r, &dims[..dims.len() - 1], &strides);
            for j in 0..row {
                let column = &src.data[(start + j as isize * step) as usize..][..*rows];
                out[j..].iter_mut().step_by(row).zip(column).for_each(|(o, &x)| *o = x);
            }
        });
    }
    let (count, places) = (out.len() / row, Shared::new(out));
    par::for_each(count, row * 2, |rows| {
        each_row(rows, &dims, &strides, src.offset, |r, start| {
            // SAFETY: rows are disjoint, each handed out once.
            let out = unsafe { places.slice(r * row..(r + 1) * row) };
            if step == 1 {
                out.copy_from_slice(&src.data[start as usize..][..row]);
            } else {
                let mut at = start;
                for o in out {
                    *o = src.data[at as usize];
                    at += step;
                }
            }
        });
    });
}

/// Row-major `src` into the strided places of `dst`. The places must not overlap.
///
/// # Panics
/// If `src` has another length, or a place is outside `dst`.
pub fn write<T: Copy + Send + Sync>(dims: &[usize], src: &[T], dst: &mut [T], offset: usize, strides: &[isize]) {
    assert_eq!(src.len(), dims.iter().product::<usize>(), "write: length of the source");
    if src.is_empty() {
        return;
    }
    check(dims, dst, offset, strides);
    let (dims, [strides]) = collapse(dims, [strides]);
    let (row, step) = (dims[dims.len() - 1], strides[strides.len() - 1]);
    let shared = Shared::new(dst);
    par::for_each(src.len() / row, row * 2, |rows| {
        each_row(rows, &dims, &strides, offset, |r, start| {
            let src = &src[r * row..][..row];
            if step == 1 {
                // SAFETY: inside (checked above); rows are distinct places by the contract.
                unsafe { shared.slice(start as usize..start as usize + row) }.copy_from_slice(src);
            } else {
                for (i, &x) in src.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { *shared.at((start + i as isize * step) as usize) = x };
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_and_write_are_inverse_and_follow_strides() {
        let data: Vec<i32> = (0..60).collect();
        // A permuted, flipped, offset view of [3, 4, 5].
        let (dims, strides, offset) = ([5usize, 3, 4], [-1isize, 20, 5], 4);
        let mut out = alloc::vec![0; 60];
        copy(&dims, Strided { data: &data, offset, strides: &strides }, &mut out);
        let mut k = 0;
        for i in 0..5isize {
            for j in 0..3isize {
                for l in 0..4isize {
                    assert_eq!(out[k], data[(4 - i + 20 * j + 5 * l) as usize]);
                    k += 1;
                }
            }
        }
        let mut back = alloc::vec![0; 60];
        write(&dims, &out, &mut back, offset, &strides);
        assert_eq!(back, data);
    }

    #[test]
    #[should_panic(expected = "leaves")]
    fn a_view_beyond_its_data_is_refused() {
        copy(&[3], Strided { data: &[1, 2, 3, 4], offset: 0, strides: &[2] }, &mut [0; 3]);
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn any_layout_is_copied_and_written() {
        use crate::testing::{Drawn, on_every_tier};
        on_every_tier(|_| {
            let mut rng = crate::rng::Rng::new(10, 0);
            let mut all: Vec<Vec<usize>> =
                (0..150).map(|_| (0..rng.below(5)).map(|_| rng.below(6)).collect()).collect();
            all.extend([alloc::vec![70_001], alloc::vec![3, 30_001], alloc::vec![30_001, 3], alloc::vec![40, 50, 60]]);
            for dims in all {
                let view = Drawn::new(&mut rng, &dims, true, |rng| rng.next_u32());
                let mut out = alloc::vec![7; dims.iter().product()];
                copy(&dims, view.view(), &mut out);
                assert_eq!(out, view.elements(&dims), "{dims:?}");
                // Places that do not overlap; between them nothing is touched.
                let places = Drawn::new(&mut rng, &dims, false, |_| 0);
                let (mut written, v) = (alloc::vec![7; places.view().data.len()], places.view());
                write(&dims, &out, &mut written, v.offset, v.strides);
                assert_eq!(Drawn::of(&written, v).elements(&dims), out, "{dims:?}");
                let holes = written.iter().filter(|&&x| x == 7).count();
                assert!(holes >= written.len() - out.len(), "{dims:?}: written between the places");
            }
        });
    }

    #[test]
    fn views_are_held_to_their_data() {
        let data = [1, 2, 3, 4, 5, 6];
        for (offset, strides, fits) in
            [(0, [3, 1], true), (1, [3, 1], false), (5, [-3, -1], true), (4, [-3, -1], false)]
        {
            let view = Strided { data: &data, offset, strides: &strides };
            assert_eq!(std::panic::catch_unwind(|| view.check(&[2, 3])).is_ok(), fits, "{offset} {strides:?}");
        }
    }
}
