//! Rows of a table by id, and the sum of gradients back into it.

use alloc::vec::Vec;

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
