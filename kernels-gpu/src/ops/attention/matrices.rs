//! Attention by cooperative matrices: what falls to a workgroup.

use super::{Attention, Of, Plan};
use crate::device::Device;
use crate::matrices::{self, Shape};
use crate::view::Stored;

/// Subgroups of a workgroup, each with as many rows as threads: the more, the fewer workgroups bring the same columns.
pub(crate) const BLOCKS: [u32; 2] = [4, 2];
/// Columns of a block; where a driver compiles for the CPU, which takes it seconds for many, and elsewhere.
const COLS: [u32; 2] = [16, 32];
/// Widest head: a row of queries and means is in the registers of its thread.
const WIDEST: usize = 96;

/// Matrices of a device, in blocks from this number on.
pub(crate) type By = (Shape, usize);

impl Attention<'_> {
    /// The half that q, k and v are all stored in.
    pub(super) fn stored(&self) -> Option<Stored> {
        let stored = self.q.stored;
        (stored != Stored::F32 && [self.k, self.v].iter().all(|x| x.stored == stored)).then_some(stored)
    }
}

impl Device {
    /// The kernel of matrices in the first block that there is room for and that leaves each core of the device two of them, or in the smallest.
    pub(super) fn block(
        &self,
        of: Of,
        a: &Attention<'_>,
        (shape, from): By,
        [items, rows, width]: [usize; 3],
    ) -> Option<Plan> {
        if of != Of::Means || !(1..=WIDEST).contains(&width) {
            return None;
        }
        let (limits, lanes) = (self.limits(), self.0.matrices.subgroup);
        let cols = COLS[usize::from(limits.large_tiles)];
        let Shape { m, n, k } = shape;
        let whole = (width as u32).next_multiple_of(n.max(k));
        let fits = lanes.is_multiple_of(m)
            && [n, k]
                .iter()
                .all(|side| side.is_multiple_of(8) && [cols, whole].iter().all(|x| x.is_multiple_of(*side)));
        // Eights of a row of operands, and fours of one of products.
        let (row, products) = (whole / 8 + 1, (cols / 4).max(cols / 8 + n / 4) + 1);
        let shared = |rows: u32| 16 * (2 * cols * row + rows * row.max(products)) + 4 * (cols + rows);
        let all = BLOCKS[from..].iter().map(|subgroups| subgroups * lanes);
        let fitting: Vec<u32> = all.filter(|&n| fits && n <= limits.threads && shared(n) <= limits.shared).collect();
        let many = |&n: &u32| (items * rows.div_ceil(n as usize)) as u64 >= 2 * u64::from(limits.cores);
        let threads = fitting.iter().copied().find(many).or(fitting.last().copied())?;
        let (shader, spec) = (matrices::attention_shader(a.stored()?), vec![lanes, m, n, k, cols]);
        Some(Plan { shader, threads, rows: threads, spec, unit: 8 })
    }
}
