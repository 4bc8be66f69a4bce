//! Sums: blocks of fixed length one after the other, then the sums of blocks: same device, same bits.

use crate::device::{Device, Kernel};
use crate::error::Result;
use crate::shaders::Shader;
use crate::view::{Binding, View, in_fours};

/// Elements of a row that one workgroup sums, and least of a column.
const ROW: usize = 4096;
const COLUMN: usize = 256;

/// What is summed.
#[derive(Clone, Copy)]
enum Term<'a> {
    Plain,
    Squared,
    /// (x - mean)^2, with a mean for each column.
    About(View<'a>),
}

/// Elements of a column of `n` that one workgroup sums: so many that the sums of blocks are summed at once.
fn block(n: usize) -> usize {
    n.div_ceil(COLUMN).max(COLUMN)
}

impl Device {
    /// y[o, i] = sum over j of x[o, j, i] for x of [outer, n, inner] elements, both contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sum(&self, x: View<'_>, around: [usize; 3], y: View<'_>) -> Result<()> {
        self.sum_of(Term::Plain, x, around, y)
    }

    /// y = the sum of the squares of all views' elements, one number; all contiguous. Blocks of each view are summed, then the blocks in order.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sum_of_squares(&self, all: &[View<'_>], y: View<'_>) -> Result<()> {
        assert!(all.iter().all(View::is_contiguous) && y.numel() == 1, "sum_of_squares: layouts");
        // The sums of each view's blocks have bound parts of their own, so that none waits for another; between them is 0.
        let apart = (self.limits().alignment / 4) as usize;
        let blocks: Vec<usize> = all.iter().map(|x| x.numel().div_ceil(ROW)).collect();
        let room = [blocks.iter().map(|n| n.next_multiple_of(apart)).sum()];
        if room == [0] {
            return self.fill(0.0, y);
        }
        let parts = self.memory(4 * room[0])?;
        let whole = View::new(&parts, 0, &room, &[1]);
        self.fill(0.0, whole)?;
        let mut start = 0;
        for (x, n) in all.iter().zip(&blocks).filter(|(_, n)| **n > 0) {
            let sums = View::new(&parts, start, std::slice::from_ref(n), &[1]);
            self.block_sums(Shader::SumRows, Term::Squared, *x, [1, x.numel(), 1, ROW], sums)?;
            start += n.next_multiple_of(apart);
        }
        self.sum(whole, [1, room[0], 1], y)
    }

    /// `y[i]` = sum over rows of `(x[row, i] - mean[i])^2` for x of [rows, n] elements, all contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn squares_about(&self, x: View<'_>, mean: View<'_>, [rows, n]: [usize; 2], y: View<'_>) -> Result<()> {
        assert!(mean.is_contiguous() && mean.numel() == n, "squares_about: {:?}", mean.dims);
        self.sum_of(Term::About(mean), x, [1, rows, n], y)
    }

    fn sum_of(&self, term: Term<'_>, x: View<'_>, [outer, n, inner]: [usize; 3], y: View<'_>) -> Result<()> {
        assert!(x.is_contiguous() && y.is_contiguous(), "sum: layouts");
        assert!(
            x.numel() == outer * n * inner && y.numel() == outer * inner && n > 0,
            "sum: {:?} to {:?}",
            x.dims,
            y.dims
        );
        if y.numel() == 0 {
            return Ok(());
        }
        // The kernel of rows knows no mean.
        let by_row = inner == 1 && !matches!(term, Term::About(_));
        let (shader, length) = if by_row { (Shader::SumRows, ROW) } else { (Shader::SumCols, block(n)) };
        let blocks = n.div_ceil(length);
        if blocks == 1 {
            return self.block_sums(shader, term, x, [outer, n, inner, length], y);
        }
        let parts = self.memory(4 * outer * blocks * inner)?;
        let all = [outer * blocks * inner];
        let parts = View::new(&parts, 0, &all, &[1]);
        self.block_sums(shader, term, x, [outer, n, inner, length], parts)?;
        self.sum_of(Term::Plain, parts, [outer, blocks, inner], y)
    }

    /// The sum of each block: y[o, b, i].
    fn block_sums(
        &self,
        shader: Shader,
        term: Term<'_>,
        x: View<'_>,
        [outer, n, inner, length]: [usize; 4],
        y: View<'_>,
    ) -> Result<()> {
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(1)?];
        let (mut bindings, mut mean_at) = (vec![from, to.writing()], 0);
        if let Term::About(mean) = term {
            let (binding, at) = mean.bind(2)?;
            bindings.push(binding);
            mean_at = at;
        }
        let (blocks, squared) = (n.div_ceil(length), u32::from(!matches!(term, Term::Plain)));
        let push = |by: u32| {
            let sizes = [outer as u32, n as u32, inner as u32 / by, blocks as u32, length as u32];
            [&sizes[..], &[x_at, y_at, mean_at].map(|at| at / by)].concat()
        };
        if shader == Shader::SumRows {
            let by = in_fours(n, &[x_at]);
            return self.rows(shader, by, &[squared], &bindings, &push(1), [outer * blocks, n.min(length)]);
        }
        let by = in_fours(inner, &[x_at, y_at, mean_at]);
        self.cols(shader, by, squared, &bindings, &push(by), [outer * blocks, n.min(length), inner])
    }

    /// A kernel of which each workgroup sums `n` rows of some columns, in fours where `by` is 4, of `blocks` of rows of `inner` elements.
    fn cols(
        &self,
        shader: Shader,
        by: u32,
        spec: u32,
        bindings: &[Binding],
        push: &[u32],
        [blocks, n, inner]: [usize; 3],
    ) -> Result<()> {
        // A power of two. At least 128 bytes side by side; more where there are few rows, of which a thread has four under way.
        let threads = 1 << self.threads().ilog2();
        let cols = if n <= 8 {
            threads / 2
        } else if by == 4 {
            16
        } else {
            32
        };
        let spec = [threads, u32::from(by == 4), cols, spec];
        let groups = [(blocks * inner.div_ceil((by * cols) as usize)) as u64, 1, 1];
        let work = 4 * (blocks * n * inner) as u64;
        self.dispatch(Kernel { shader, spec: &spec, bindings, push, groups, work })
    }

    /// y[0, j] = sum over rows of dy z and y[1, j] = that of dy, for x and dy of [rows, n] elements and z = (x - mean) rstd: a norm's
    /// gradients of weight and bias. Mean and rstd have an element for each row, or with `columns` for each column. All contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn norm_sums(
        &self,
        columns: bool,
        x: View<'_>,
        dy: View<'_>,
        [mean, rstd]: [View<'_>; 2],
        [rows, n]: [usize; 2],
        y: View<'_>,
    ) -> Result<()> {
        let of = if columns { n } else { rows };
        let fits = x.numel() == rows * n && dy.numel() == rows * n && mean.numel() == of && rstd.numel() == of;
        assert!([x, dy, mean, rstd, y].iter().all(View::is_contiguous), "norm_sums: layouts");
        assert!(fits && y.numel() == 2 * n && rows > 0, "norm_sums: {:?} and {:?}", x.dims, dy.dims);
        if n == 0 {
            return Ok(());
        }
        let (each, of_columns) = (block(rows), u32::from(columns));
        let blocks = rows.div_ceil(each);
        let [x, dy, mean, rstd] = [x.bind(0)?, dy.bind(1)?, mean.bind(2)?, rstd.bind(3)?];
        let sums = |y: View<'_>| {
            let (to, y_at) = y.bind(4)?;
            let bindings = [x.0, dy.0, mean.0, rstd.0, to.writing()];
            let statistics = [mean.1, rstd.1];
            let by = match columns {
                true => in_fours(n, &[x.1, dy.1, y_at, statistics[0], statistics[1]]),
                false => in_fours(n, &[x.1, dy.1, y_at]),
            };
            let [mean_at, rstd_at] = statistics.map(|at| if columns { at / by } else { at });
            let push = [rows as u32, n as u32 / by, each as u32, x.1 / by, dy.1 / by, mean_at, rstd_at, y_at / by];
            self.cols(Shader::NormSums, by, of_columns, &bindings, &push, [blocks, rows.min(each), n])
        };
        if blocks == 1 {
            return sums(y);
        }
        let parts = self.memory(4 * blocks * 2 * n)?;
        let all = [blocks * 2 * n];
        let parts = View::new(&parts, 0, &all, &[1]);
        sums(parts)?;
        self.sum(parts, [1, blocks, 2 * n], y)
    }
}
