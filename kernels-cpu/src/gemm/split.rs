//! How a product is split into jobs, which threads take one after the other.

use core::ops::Range;

use super::Mat;
use super::nest::slab_of;
use super::order::Passing;
use super::words::Words;
use crate::isa::Isa;
use crate::par;

/// Words of A that are packed once for all jobs of a thread.
const NEAR_A: usize = 1 << 18;
/// Most words that a slab of a job's rows takes, which stay in a second-level cache of 1 MiB beside two panels of B.
const MOST_ROWS: usize = 3 << 16;
/// Rows of A that so many panels of B meet on each thread are packed by each.
const ENOUGH_PANELS: usize = 4;

/// What A is: numbers that follow each other in rows, or in columns, or windows over a map.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Rows,
    Columns,
    Windows,
}

impl Form {
    pub fn of<T>(a: &Mat<'_, T>) -> Self {
        if a.col_stride == 1 { Self::Rows } else { Self::Columns }
    }
}

/// Jobs: so many parts of the tiles of rows, each by so many parts of the panels of B.
#[derive(Clone, Copy)]
pub(super) struct Split {
    pub row_tiles: usize,
    pub panels: usize,
    pub row_jobs: usize,
    pub col_jobs: usize,
    /// Whether a thread's jobs have the same rows of A, which it would pack once for all of them.
    pub by_thread: bool,
    workers: usize,
}

impl Split {
    /// Of a product of [m, k] and [k, n] by tiles of `mr` rows. Rows of A that are windows are read where they lie, whatever is done.
    pub fn new(isa: Isa, words: Words, [m, k, n]: [usize; 3], mr: usize, form: Form, threads: bool) -> Self {
        let workers = if threads { par::threads() } else { 1 };
        let ((_, nr), slab) = (words.tile(isa), slab_of(words, k));
        let (row_tiles, panels) = (m.div_ceil(mr), n.div_ceil(nr));
        // Enough jobs that a disturbed thread does not hold up the rest, but where every job reads more rows of A than stay near, two for each
        // thread, and as many for each. The larger operand is split, so that none of it is read twice; a job of rows is at least two tiles high.
        let long = n > m && m * k > NEAR_A && form != Form::Windows;
        let wanted = match workers {
            1 => 1,
            _ if long => 2 * workers,
            _ => 4 * workers,
        };
        let high = row_tiles.div_ceil((MOST_ROWS / (mr * slab)).max(2));
        let (row_jobs, col_jobs) = if n > m {
            let col_jobs = wanted.min(panels);
            ((wanted / col_jobs).min(row_tiles / 2).max(high).max(1), col_jobs)
        } else {
            let row_jobs = match wanted.min(row_tiles / 2).max(1) {
                few if few < high => high.next_multiple_of(workers).min(row_tiles),
                jobs => jobs,
            };
            // All rows pass by a part of B that stays near, then by the next.
            let passing = Passing::new(isa, words, m, form == Form::Rows);
            let parts = if k <= slab { passing.parts(panels * nr * k) } else { 1 };
            (row_jobs, (wanted / row_jobs).clamp(1, panels).max(parts))
        };
        let by_thread = row_jobs == 1 && col_jobs > 1 && m * k <= NEAR_A && panels / workers >= ENOUGH_PANELS;
        Self { row_tiles, panels, row_jobs, col_jobs, by_thread, workers }
    }

    /// Panels of B that a packed row of A would meet.
    pub fn meets(&self) -> usize {
        if self.by_thread { self.panels / self.workers } else { self.panels_per_job() }
    }

    pub fn tiles_per_job(&self) -> usize {
        self.row_tiles.div_ceil(self.row_jobs)
    }

    pub fn panels_per_job(&self) -> usize {
        self.panels.div_ceil(self.col_jobs)
    }

    /// The tiles of rows of a job.
    pub fn tiles_of(&self, job: usize) -> Range<usize> {
        share(self.row_tiles, self.row_jobs, job % self.row_jobs)
    }

    /// The panels of B of a job.
    pub fn panels_of(&self, job: usize) -> Range<usize> {
        share(self.panels, self.col_jobs, job / self.row_jobs)
    }
}

/// What job `i` of `jobs` does of so many tiles: one more than another at most, so that threads with as many jobs end together.
fn share(tiles: usize, jobs: usize, i: usize) -> Range<usize> {
    tiles * i / jobs..tiles * (i + 1) / jobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn jobs_share_all_tiles_evenly() {
        for (tiles, jobs) in [(1, 1), (74, 8), (7, 7), (15, 4), (1000, 24)] {
            let shares: Vec<Range<usize>> = (0..jobs).map(|i| share(tiles, jobs, i)).collect();
            assert!(shares.iter().cloned().flatten().eq(0..tiles), "{tiles} tiles, {jobs} jobs: {shares:?}");
            assert!(shares.iter().all(|share| (tiles / jobs..=tiles.div_ceil(jobs)).contains(&share.len())));
        }
        // Two threads, half of the jobs each.
        assert_eq!([0, 4].map(|first| (first..first + 4).map(|i| share(74, 8, i).len()).sum::<usize>()), [37, 37]);
    }
}
