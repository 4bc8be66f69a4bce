//! Sums: blocks of fixed length one after the other, then the sums of blocks: same device, same bits.

use crate::device::{Device, Kernel};
use crate::error::Result;
use crate::shaders::Shader;
use crate::view::{View, in_fours};

/// Elements of a row that one workgroup sums, and of a column that one thread does.
const ROW: usize = 4096;
const COLUMN: usize = 64;

/// What is summed.
#[derive(Clone, Copy)]
enum Term<'a> {
    Plain,
    Squared,
    /// (x - mean)^2, with a mean for each column.
    About(View<'a>),
}

impl Device {
    /// y[o, i] = sum over j of x[o, j, i] for x of [outer, n, inner] elements, both contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sum(&self, x: View<'_>, around: [usize; 3], y: View<'_>) -> Result<()> {
        self.sum_of(Term::Plain, x, around, y)
    }

    /// y = sum of the squares of x, contiguous; y is one element.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sum_squares(&self, x: View<'_>, y: View<'_>) -> Result<()> {
        self.sum_of(Term::Squared, x, [1, x.numel(), 1], y)
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
        let (shader, length) = if by_row { (Shader::SumRows, ROW) } else { (Shader::SumCols, COLUMN) };
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
        let (blocks, work) = (n.div_ceil(length), 4 * x.numel() as u64);
        let push = [outer, n, inner, blocks, length].map(|n| n as u32);
        let (push, squared) = ([&push[..], &[x_at, y_at, mean_at]].concat(), u32::from(!matches!(term, Term::Plain)));
        if shader == Shader::SumRows {
            let by = in_fours(n, &[x_at]);
            return self.rows(shader, by, &[squared], &bindings, &push, [outer * blocks, n.min(length)]);
        }
        let threads = self.threads();
        let groups = [((outer * blocks * inner) as u64).div_ceil(u64::from(threads)), 1, 1];
        let spec = [threads, squared];
        self.dispatch(Kernel { shader, spec: &spec, bindings: &bindings, push: &push, groups, work })
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
        let blocks = rows.div_ceil(COLUMN);
        let [x, dy, mean, rstd] = [x.bind(0)?, dy.bind(1)?, mean.bind(2)?, rstd.bind(3)?];
        let sums = |y: View<'_>| {
            let (to, y_at) = y.bind(4)?;
            let bindings = [x.0, dy.0, mean.0, rstd.0, to.writing()];
            let push = [rows as u32, n as u32, COLUMN as u32, x.1, dy.1, mean.1, rstd.1, y_at];
            let threads = self.threads();
            let groups = [((blocks * n) as u64).div_ceil(u64::from(threads)), 1, 1];
            let (spec, work) = ([threads, u32::from(columns)], 8 * (rows * n) as u64);
            self.dispatch(Kernel {
                shader: Shader::NormSums,
                spec: &spec,
                bindings: &bindings,
                push: &push,
                groups,
                work,
            })
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
