//! Attention by cooperative matrices: what falls to a workgroup.

use super::{Attention, Of, Plan};
use crate::device::Device;
use crate::matrices::{self, By, Shape};
use crate::select::Kind;
use crate::view::Stored;

/// Subgroups of a workgroup, each with as many rows as threads: the more, the fewer workgroups bring the same columns. Forward, and for gradients, which have
/// more in shared memory.
pub(crate) const BLOCKS: usize = 2;
const SUBGROUPS: [[u32; BLOCKS]; 2] = [[4, 2], [2, 1]];
/// Columns of a block; where a driver compiles for the CPU, which takes it seconds for many, and elsewhere.
const COLS: [u32; 2] = [16, 32];
/// Widest head, forward and for gradients: a row of queries and means, or of gradients of a key and a value, is in the registers of its thread.
const WIDEST: [usize; 2] = [96, 64];

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
        let case = usize::from(of != Of::Means);
        if !(1..=WIDEST[case]).contains(&width) {
            return None;
        }
        let (limits, lanes) = (self.limits(), self.0.matrices.subgroup);
        let cols = COLS[usize::from(self.info().kind != Kind::Software)];
        let Shape { m, n, k } = shape;
        let whole = (width as u32).next_multiple_of(n.max(k));
        let fits = lanes.is_multiple_of(m)
            && [n, k]
                .iter()
                .all(|side| side.is_multiple_of(8) && [cols, whole].iter().all(|x| x.is_multiple_of(*side)));
        // Eights of a row of operands, and fours of one of products.
        let (row, products) = (whole / 8 + 1, (cols / 4).max(cols / 8 + n / 4) + 1);
        let shared = |rows: u32| match of {
            Of::Means => 16 * (2 * cols * row + rows * row.max(products)) + 4 * (cols + rows),
            _ => 16 * (2 * cols * row + rows * (2 * row + products)) + 8 * cols,
        };
        let all = SUBGROUPS[case][from..].iter().map(|subgroups| subgroups * lanes);
        let fitting: Vec<u32> = all.filter(|&n| fits && n <= limits.threads && shared(n) <= limits.shared).collect();
        let many = |&n: &u32| (items * rows.div_ceil(n as usize)) as u64 >= 2 * u64::from(limits.cores);
        let threads = fitting.iter().copied().find(many).or(fitting.last().copied())?;
        let stored = a.stored()?;
        let (shader, last) = match of {
            Of::Means => (matrices::attention_shader(stored), None),
            _ => (matrices::attention_backward_shader(stored), Some(u32::from(of == Of::Keys))),
        };
        let spec = [lanes, m, n, k, cols].into_iter().chain(last).collect();
        Some(Plan { shader, threads, rows: threads, spec, unit: 8 })
    }
}
