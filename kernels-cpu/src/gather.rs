//! Elements by index: rows of a table by id, elements along a dimension, the largest of a dimension; and sums back into place.
//!
//! A tensor is seen as [outer, n, inner] around the dimension that is indexed.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::float::Float;
use crate::par;

#[track_caller]
fn check(ids: &[i64], rows: usize) {
    for (i, &id) in ids.iter().enumerate() {
        assert!(id >= 0 && (id as usize) < rows, "gather: id {id} at position {i} for a table of {rows} rows");
    }
}

/// Row i of `out` is row `ids[i]` of `table`, for rows of `cols` elements.
///
/// # Panics
/// If an id is outside the table, or the lengths do not fit.
pub fn gather_rows<T: Copy + Send + Sync>(table: &[T], cols: usize, ids: &[i64], out: &mut [T]) {
    assert_eq!(out.len(), ids.len() * cols, "gather_rows: length of the output");
    if out.is_empty() {
        return;
    }
    check(ids, table.len() / cols);
    par::chunks_mut(out, cols, cols, |i, out| out.copy_from_slice(&table[ids[i] as usize * cols..][..cols]));
}

/// Adds row i of `grad` to row `ids[i]` of `out`. Rows of equal id are added in the order of i, whatever the number of threads.
///
/// # Panics
/// If an id is outside the table, or the lengths do not fit.
pub fn scatter_add_rows<F: Float>(grad: &[F], cols: usize, ids: &[i64], out: &mut [F]) {
    assert_eq!(grad.len(), ids.len() * cols, "scatter_add_rows: length of the gradient");
    if grad.is_empty() {
        return;
    }
    check(ids, out.len() / cols);
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&i| ids[i]);
    let shared = par::Shared::new(out);
    let groups: Vec<&[usize]> = order.chunk_by(|&a, &b| ids[a] == ids[b]).collect();
    par::for_each(groups.len(), cols * 2 * ids.len() / groups.len(), |range| {
        for group in &groups[range] {
            let id = ids[group[0]] as usize;
            // SAFETY: one group per id, so rows are disjoint.
            let row = unsafe { shared.slice(id * cols..(id + 1) * cols) };
            for &i in *group {
                row.iter_mut().zip(&grad[i * cols..][..cols]).for_each(|(r, &g)| *r += g);
            }
        }
    });
}

/// `out[o, j, i] = x[o, index[o, j, i], i]` for x [outer, n, inner] and an index [outer, k, inner].
///
/// # Panics
/// If an index is not below n, or the lengths do not fit.
pub fn gather<T: Copy + Send + Sync>(x: &[T], [outer, n, inner]: [usize; 3], index: &[i64], out: &mut [T]) {
    assert_eq!((x.len(), out.len()), (outer * n * inner, index.len()), "gather: lengths of the input and the output");
    if out.is_empty() {
        return;
    }
    check(index, n);
    let k = index.len() / (outer * inner);
    par::chunks_mut(out, inner, 2 * inner, |row, out| {
        let x = &x[row / k * n * inner..][..n * inner];
        for (i, (out, &at)) in out.iter_mut().zip(&index[row * inner..]).enumerate() {
            *out = x[at as usize * inner + i];
        }
    });
}

/// `out[o, index[o, j, i], i] += src[o, j, i]` for src and an index [outer, k, inner] and `out` [outer, n, inner]. What falls on one
/// element is added in the order of j, whatever the number of threads.
///
/// # Panics
/// If an index is not below n, or the lengths do not fit.
pub fn scatter_add<F: Float>(src: &[F], index: &[i64], out: &mut [F], [outer, n, inner]: [usize; 3]) {
    assert_eq!((src.len(), out.len()), (index.len(), outer * n * inner), "scatter_add: lengths of source and output");
    if src.is_empty() {
        return;
    }
    check(index, n);
    let each = src.len() / outer;
    par::chunks_mut(out, n * inner, 2 * each, |o, out| {
        let part = o * each..(o + 1) * each;
        for (j, (&value, &at)) in src[part.clone()].iter().zip(&index[part]).enumerate() {
            out[at as usize * inner + j % inner] += value;
        }
    });
}

/// Along the middle dimension of x [outer, n, inner] the places of the k largest (or smallest) elements, best first, to `index`
/// [outer, k, inner]. Of equal elements the lower place comes first; NaN counts as larger than any number.
///
/// # Panics
/// If k is more than n, or the lengths do not fit.
pub fn topk<F: Float>(x: &[F], [outer, n, inner]: [usize; 3], k: usize, largest: bool, index: &mut [i64]) {
    assert!(k <= n, "topk: {k} of {n} elements");
    assert_eq!(
        (x.len(), index.len()),
        (outer * n * inner, outer * k * inner),
        "topk: lengths of the input and the output"
    );
    if index.is_empty() {
        return;
    }
    // NaN and numbers in one order; 0 and -0 are equal.
    let nan = |x: F| x.partial_cmp(&x).is_none();
    let order = |a: F, b: F| a.partial_cmp(&b).unwrap_or_else(|| nan(a).cmp(&nan(b)));
    par::chunks_mut(index, k * inner, 8 * n * inner, |o, index| {
        let x = &x[o * n * inner..][..n * inner];
        let mut places: Vec<usize> = Vec::with_capacity(n);
        for i in 0..inner {
            let better = |&a: &usize, &b: &usize| -> Ordering {
                let by_value = order(x[a * inner + i], x[b * inner + i]);
                (if largest { by_value.reverse() } else { by_value }).then(a.cmp(&b))
            };
            places.clear();
            places.extend(0..n);
            if k < n {
                places.select_nth_unstable_by(k, better);
                places.truncate(k);
            }
            places.sort_unstable_by(better);
            places.iter().enumerate().for_each(|(j, &place)| index[j * inner + i] = place as i64);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topk_is_stable_and_puts_nan_above_all() {
        let x = [1.0, 3.0, f64::NAN, 3.0, 0.0, -0.0];
        let top = |k, largest| {
            let mut index = alloc::vec![0; k];
            topk(&x, [1, 6, 1], k, largest, &mut index);
            index
        };
        assert_eq!(top(6, true), [2, 1, 3, 0, 4, 5]);
        assert_eq!(top(4, true), [2, 1, 3, 0]);
        assert_eq!(top(6, false), [4, 5, 0, 1, 3, 2]);
        assert_eq!(top(1, false), [4]);
    }

    /// Several maps, several columns, ids that repeat: each against a loop over single elements, with threads.
    #[cfg(feature = "rayon")]
    #[test]
    fn gathers_and_scatters_are_loops_over_elements() {
        use crate::testing::{normals, on_every_tier};
        use alloc::vec;
        on_every_tier(|_| {
            let mut rng = crate::rng::Rng::new(9, 0);
            for [outer, n, inner, k] in
                [[1, 1, 1, 1], [3, 5, 4, 7], [2, 9, 1, 3], [40, 30, 50, 20], [2, 3, 4, 0], [1, 4, 3, 4]]
            {
                let x = normals(&mut rng, outer * n * inner);
                let index: Vec<i64> = (0..outer * k * inner).map(|_| rng.below(n) as i64).collect();
                let from = |at: usize| (at / (k * inner) * n + index[at] as usize) * inner + at % inner;
                let mut out = vec![7.0; index.len()];
                gather(&x, [outer, n, inner], &index, &mut out);
                assert!((0..out.len()).all(|at| out[at] == x[from(at)]));
                let (mut sums, mut expected) = (x.clone(), x.clone());
                scatter_add(&out, &index, &mut sums, [outer, n, inner]);
                (0..out.len()).for_each(|at| expected[from(at)] += out[at]);
                assert_eq!(sums, expected);

                let ids: Vec<i64> = (0..outer * k).map(|_| rng.below(n) as i64).collect();
                let (table, mut rows) = (&x[..n * inner], vec![7.0; ids.len() * inner]);
                gather_rows(table, inner, &ids, &mut rows);
                let from = |at: usize| ids[at / inner] as usize * inner + at % inner;
                assert!((0..rows.len()).all(|at| rows[at] == table[from(at)]));
                let (mut sums, mut expected) = (table.to_vec(), table.to_vec());
                scatter_add_rows(&rows, inner, &ids, &mut sums);
                (0..rows.len()).for_each(|at| expected[from(at)] += rows[at]);
                assert_eq!(sums, expected);

                let largest = rng.chance(0.5);
                let mut top = vec![7; outer * k.min(n) * inner];
                topk(&x, [outer, n, inner], k.min(n), largest, &mut top);
                for at in 0..top.len() {
                    let (o, j, i) = (at / (k.min(n) * inner), at / inner % k.min(n), at % inner);
                    let value = |m: usize| x[(o * n + m) * inner + i];
                    let before =
                        (0..n).filter(|&m| (value(m) > value(top[at] as usize)) == largest && m != top[at] as usize);
                    assert_eq!(before.count(), j, "a place too high or too low");
                }
            }
        });
    }

    #[test]
    fn ids_outside_a_table_are_refused() {
        for id in [-1, 2] {
            let refused = std::panic::catch_unwind(|| gather_rows(&[1.0, 2.0], 1, &[0, id], &mut [0.0; 2]));
            assert!(refused.is_err(), "{id}");
        }
    }
}
