//! Element by element: copies, functions of one, with their derivatives, and of two, dropout.

use kernels_cpu::map::Unary;
use kernels_cpu::zip::Binary;

use crate::device::{Device, Kernel};
use crate::error::{Error, Result};
use crate::shaders::Shader;
use crate::view::{Binding, Merged, Stored, View, in_fours, merged};

/// Elements or fours that a thread of a copy has under way; half of them where there is more to read or to do.
const PER: u32 = 4;

/// Side of the squares in which a matrix is transposed.
const SIDE: u32 = 32;

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

impl Function {
    /// Its number in the shaders, and its constants.
    fn code(self) -> (u32, f32, f32) {
        match self {
            Self::Unary(f) => (f as u32, 0.0, 0.0),
            Self::Affine(a, b) => (100, a, b),
            Self::Clamp(low, high) => (101, low, high),
        }
    }
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
        let ([(from, x_at), (to, y_at)], mut m) = ([x.bind(0)?, y.bind(1)?], merged([&x, &y]));
        let mut at = [x_at, y_at];
        if let Some(sides) = m.sides() {
            return self.transpose(m, sides, at, [from, to.writing()]);
        }
        let by = if m.ones() == [false; 2] { m.in_fours(&mut at) } else { 1 };
        let [xs, ys] = m.strides.map(signed);
        let n = x.numel();
        let push = [&[n as u32 / by, at[0], at[1], m.rank][..], &m.dims, &xs, &ys, &[0]].concat();
        self.places(Shader::Copy, [by, PER], &[0], &[from, to.writing()], &push, n)
    }

    /// y = x with other `sides` side by side in one than in the other.
    fn transpose(&self, m: Merged<2>, sides: [usize; 2], at: [u32; 2], bindings: [Binding; 2]) -> Result<()> {
        let around: Vec<usize> = (0..m.rank as usize).filter(|k| !sides.contains(k)).collect();
        let [mut dims, mut xs, mut ys] = [[1; 4], [0; 4], [0; 4]];
        for (to, &k) in around.iter().enumerate() {
            (dims[to], xs[to], ys[to]) = (m.dims[k], m.strides[0][k] as u32, m.strides[1][k] as u32);
        }
        let [rows, columns] = sides;
        let n: u32 = dims.iter().product();
        let tail = [m.dims[rows], m.dims[columns], m.strides[0][columns] as u32, m.strides[1][rows] as u32];
        let push = [&[n, at[0], at[1], around.len().max(1) as u32][..], &dims, &xs, &ys, &tail].concat();
        let [down, across] = sides.map(|k| u64::from(m.dims[k].div_ceil(SIDE)));
        let groups = [u64::from(n) * down * across, 1, 1];
        let work = 8 * u64::from(n * m.dims[rows] * m.dims[columns]);
        let spec = [self.threads()];
        self.dispatch(Kernel { shader: Shader::Transpose, spec: &spec, bindings: &bindings, push: &push, groups, work })
    }

    /// y = a value, in any layout.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn fill(&self, value: f32, y: View<'_>) -> Result<()> {
        if y.numel() == 0 {
            return Ok(());
        }
        let ((to, y_at), mut m, n) = (y.bind(1)?, merged([&y]), y.numel());
        let mut at = [y_at];
        let by = m.in_fours(&mut at);
        let ys = signed(m.strides[0]);
        let push = [&[n as u32 / by, 0, at[0], m.rank][..], &m.dims, &ys, &ys, &[value.to_bits()]].concat();
        self.places(Shader::Copy, [by, PER], &[1], &[to.writing()], &push, n)
    }

    /// y = x, contiguous both, of which one is f32 and the other stored in half, to the nearest (ties to even, NaN stays). A y in half begins with
    /// a word of two elements and is written by words, the last one too.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn cast(&self, x: View<'_>, y: View<'_>) -> Result<()> {
        assert!(x.dims == y.dims && x.is_contiguous() && y.is_contiguous(), "cast: {:?} to {:?}", x.dims, y.dims);
        let (to_half, kind) = match [x.stored, y.stored] {
            [Stored::F32, half] => (true, half),
            [half, _] => (false, half),
        };
        assert!([x.stored, y.stored].contains(&Stored::F32) && kind != Stored::F32, "cast: {:?}", [x.stored, y.stored]);
        if x.numel() == 0 {
            return Ok(());
        }
        let [(from, x_at), (to, y_at)] = [x.bind_stored(0)?, y.bind_stored(1)?];
        assert!(!to_half || y_at.is_multiple_of(2), "cast: to a half of a word");
        let n = x.numel();
        let by = in_fours(n, &[x_at, y_at]);
        let per_place = if by == 1 && to_half { 2 } else { by };
        let push = [(n as u32).div_ceil(per_place), n as u32, x_at / by, y_at / per_place];
        self.places(Shader::Cast, [by, PER / 2], &[u32::from(to_half), kind as u32], &[from, to.writing()], &push, n)
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
        let (code, a, b) = f.code();
        let ([(from, x_at), (to, y_at)], mut m) = ([x.bind(0)?, y.bind(1)?], merged([&x, &y]));
        let mut at = [x_at, y_at];
        let by = if m.ones() == [false; 2] { m.in_fours(&mut at) } else { 1 };
        let n = x.numel();
        let tail = [a.to_bits(), b.to_bits()];
        let push = [&[n as u32 / by, at[0], at[1], m.rank][..], &m.dims, &signed(m.strides[0]), &tail].concat();
        self.places(Shader::Map, [by, PER / 2], &[code], &[from, to.writing()], &push, n)
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
        let bound = [a.bind(0)?, b.bind(1)?, y.bind(2)?];
        let ([left, right, to], mut at, mut m) = (bound.map(|b| b.0), bound.map(|b| b.1), merged([&a, &b, &y]));
        let by = m.in_fours(&mut at);
        let [one_a, one_b, _] = m.ones().map(|one| u32::from(one && by == 4));
        let [sa, sb, _] = m.strides.map(signed);
        let n = y.numel();
        let push = [&[n as u32 / by][..], &at, &[m.rank], &m.dims, &sa, &sb].concat();
        self.places(Shader::Zip, [by, PER / 2], &[f as u32, one_a, one_b], &[left, right, to.writing()], &push, n)
    }

    /// dx = f'(kept) dy, contiguous; kept is x or f(x), as [`Unary::saves`] says; x for the others.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn map_backward(&self, f: Function, kept: View<'_>, dy: View<'_>, dx: View<'_>) -> Result<()> {
        let fits = [kept, dy, dx].iter().all(|v| v.is_contiguous() && v.dims == dx.dims);
        assert!(fits, "map_backward: {:?} and {:?}", kept.dims, dy.dims);
        if dx.numel() == 0 {
            return Ok(());
        }
        let (code, a, b) = f.code();
        let [(kept, kept_at), (from, dy_at), (to, dx_at)] = [kept.bind(0)?, dy.bind(1)?, dx.bind(2)?];
        let n = dx.numel();
        let by = in_fours(n, &[kept_at, dy_at, dx_at]);
        let push = [n as u32 / by, kept_at / by, dy_at / by, dx_at / by, a.to_bits(), b.to_bits()];
        self.places(Shader::MapBackward, [by, PER / 2], &[code], &[kept, from, to.writing()], &push, n)
    }

    /// y = x / (1 - p) where kernels-cpu's `keeps` holds for the key and the element's number, else 0; contiguous, and they may be the
    /// same.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn dropout(&self, p: f64, key: u64, x: View<'_>, y: View<'_>) -> Result<()> {
        assert!(x.dims == y.dims && x.is_contiguous() && y.is_contiguous(), "dropout: {:?} to {:?}", x.dims, y.dims);
        if x.numel() == 0 {
            return Ok(());
        }
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(1)?];
        let n = x.numel();
        let (least, scale) = ((p * 4_294_967_296.0).ceil() as u32, (1.0 / (1.0 - p)) as f32);
        let by = in_fours(n, &[x_at, y_at]);
        let push = [n as u32 / by, x_at / by, y_at / by, key as u32, (key >> 32) as u32, least, scale.to_bits()];
        self.places(Shader::Dropout, [by, PER / 2], &[], &[from, to.writing()], &push, n)
    }

    /// y = s (x - m) + t for each column of x, [rows, n] elements, with m, s and t of n; and with `more` = (r, u) + r u for u of the dims
    /// of x. All contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn columns(
        &self,
        x: View<'_>,
        [m, s, t]: [View<'_>; 3],
        more: Option<[View<'_>; 2]>,
        y: View<'_>,
    ) -> Result<()> {
        let (all, n) = (x.numel(), m.numel());
        let each = [m, s, t].into_iter().chain(more.map(|[r, _]| r));
        let whole = [x, y].into_iter().chain(more.map(|[_, u]| u));
        assert!(each.clone().all(|v| v.is_contiguous() && v.numel() == n), "columns: numbers of each column");
        assert!(whole.clone().all(|v| v.is_contiguous() && v.numel() == all), "columns: {:?} to {:?}", x.dims, y.dims);
        if all == 0 {
            return Ok(());
        }
        let bound = [x.bind(0)?, m.bind(1)?, s.bind(2)?, t.bind(3)?, y.bind(4)?];
        let mut bindings = bound.map(|(binding, _)| binding).to_vec();
        bindings[4].writes = true;
        let mut at = [bound.map(|(_, at)| at).as_slice(), &[0, 0]].concat();
        if let Some([r, u]) = more {
            let [(u, u_at), (r, r_at)] = [u.bind(5)?, r.bind(6)?];
            bindings.extend([u, r]);
            at[5..].copy_from_slice(&[u_at, r_at]);
        }
        let by = in_fours(n, &at);
        let push: Vec<u32> = [all as u32, n as u32].into_iter().chain(at).map(|count| count / by).collect();
        self.places(Shader::Columns, [by, PER / 2], &[u32::from(more.is_some())], &bindings, &push, all)
    }
}
