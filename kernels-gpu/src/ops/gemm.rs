//! Matrix products.

use kernels_cpu::map::Unary;

use crate::device::{Device, Kernel};
use crate::error::{Error, Result};
use crate::matrices::{self, Shape};
use crate::shaders::Shader;
use crate::view::View;

/// C = act(alpha A B + bias + residual).
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// [b0, b1, m, k] in any layout.
    pub a: View<'a>,
    /// [b0, b1, k, n] in any layout, f32 or stored in half: a weight.
    pub b: View<'a>,
    /// [b0, b1, m, n], its rows without gaps.
    pub c: View<'a>,
    /// Factor of the product.
    pub alpha: f32,
    /// `[n]`, contiguous.
    pub bias: Option<View<'a>>,
    /// Added; of the dims and strides of C.
    pub residual: Option<View<'a>>,
    /// Applied last.
    pub act: Option<Unary>,
}

impl<'a> Gemm<'a> {
    /// C = A B.
    pub fn new(a: View<'a>, b: View<'a>, c: View<'a>) -> Self {
        Self { a, b, c, alpha: 1.0, bias: None, residual: None, act: None }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In f32.
    Words,
    /// In what the right operand is stored as, by cooperative matrices, at most `most` by `most` of them by a subgroup.
    Matrices { shape: Shape, most: u32 },
}

/// What a workgroup makes: rows and columns of C, and the constants of its shader that say so.
pub(crate) struct Tile {
    rows: u32,
    cols: u32,
    spec: Vec<u32>,
}

/// Depth of a tile of f32.
const DEPTH: u32 = 16;
/// Few large tiles would leave most of a device idle.
const ENOUGH: usize = 64;

impl Tile {
    fn count(&self, [m, n]: [usize; 2]) -> [u64; 2] {
        [n.div_ceil(self.cols as usize) as u64, m.div_ceil(self.rows as usize) as u64]
    }

    /// Threads across and down, and elements of each.
    fn words([across, down, rows, cols]: [u32; 4]) -> Self {
        let spec = vec![across * down, across, down, rows, cols, DEPTH];
        Self { rows: down * rows, cols: across * cols, spec }
    }

    /// Two by two subgroups of `each` by `each` matrices.
    fn matrices(subgroup: u32, shape: Shape, each: u32) -> Self {
        let spec = vec![4 * subgroup, 2, 2, each, each, shape.m, shape.n, shape.k, matrices::DEPTH];
        Self { rows: 2 * each * shape.m, cols: 2 * each * shape.n, spec }
    }

    /// Bytes of shared memory: both operands' tiles in half, and a matrix of each subgroup.
    fn shared(&self, shape: Shape) -> u32 {
        2 * (self.rows + self.cols) * (matrices::DEPTH + 8) + 16 * shape.m * shape.n
    }
}

impl Device {
    /// Computes a product: in f32, or, where B is stored in half and the device has cooperative matrices for it that are right and
    /// quicker, in half with sums of f32.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn gemm(&self, g: &Gemm<'_>) -> Result<()> {
        self.product(g, self.way(g.b.stored)?)
    }

    /// The largest tile of which there are enough; `None` where the device has no room for any.
    pub(crate) fn tile(&self, way: Way, [m, n, batch]: [usize; 3]) -> Option<Tile> {
        let (limits, subgroup) = (self.limits(), self.0.matrices.subgroup);
        let fitting: Vec<Tile> = match way {
            Way::Words => {
                let large = (m > 32 && n > 32).then_some([16, 16, 4, 4]);
                large.into_iter().chain([[8, 8, 4, 4]]).map(Tile::words).collect()
            }
            Way::Matrices { shape, most } => {
                let all = [4, 2, 1].into_iter().filter(|&each| each <= most);
                let tiles = all.map(|each| Tile::matrices(subgroup, shape, each));
                tiles.filter(|tile| tile.shared(shape) <= limits.shared).collect()
            }
        };
        let mut fitting: Vec<Tile> = fitting.into_iter().filter(|tile| tile.spec[0] <= limits.threads).collect();
        let many = |tile: &Tile| tile.count([m, n]).iter().product::<u64>() * batch as u64 >= ENOUGH as u64;
        let at = fitting.iter().position(many).or_else(|| fitting.len().checked_sub(1))?;
        Some(fitting.swap_remove(at))
    }

    /// As [`Self::gemm`], in this way.
    pub(crate) fn product(&self, g: &Gemm<'_>, way: Way) -> Result<()> {
        let [(a, b, c)] = [(g.a.dims, g.b.dims, g.c.dims)];
        let fits = [a, b, c].iter().all(|d| d.len() == 4)
            && (0..2).all(|i| a[i] == c[i] && b[i] == c[i])
            && (a[2], a[3], b[3]) == (c[2], b[2], c[3]);
        assert!(fits && (c[3] == 1 || g.c.strides[3] == 1), "gemm: {a:?} times {b:?} to {c:?}");
        if g.c.numel() == 0 {
            return Ok(());
        }
        let (m, n, k, batch) = (c[2], c[3], a[3], c[0] * c[1]);
        let (to, c_at) = g.c.bind(2)?;
        let mut bindings = vec![to.writing()];
        // A product over nothing is zero; its operands are then not read, and nothing is bound for them.
        let (mut a_at, mut b_at) = (0, 0);
        if k > 0 {
            let [(left, a_), (right, b_)] = [g.a.bind(0)?, g.b.bind_stored(1)?];
            bindings.extend([left, right]);
            (a_at, b_at) = (a_, b_);
        } else {
            bindings.extend([0, 1].map(|number| crate::view::Binding { number, ..to }));
        }
        let (mut bias_at, mut residual_at) = (0, 0);
        if let Some(bias) = g.bias {
            assert!(bias.numel() == n && bias.is_contiguous(), "gemm: a bias of {:?} for {n} columns", bias.dims);
            let (binding, at) = bias.bind(3)?;
            bindings.push(binding);
            bias_at = at;
        }
        if let Some(residual) = g.residual {
            assert!(residual.dims == c && residual.strides == g.c.strides, "gemm: the layout of the residual");
            let (binding, at) = residual.bind(4)?;
            bindings.push(binding);
            residual_at = at;
        }
        // Along the batch alone a workgroup goes on to the next.
        let tile = self.tile(way, [m, n, batch]).ok_or_else(|| Error::Limit("no room for a tile".to_owned()))?;
        let ([across, down], most) = (tile.count([m, n]), self.limits().groups);
        if across > u64::from(most[0]) || down > u64::from(most[1]) {
            return Err(Error::Limit(format!("a product of {c:?} has more tiles than the device takes")));
        }
        let groups = [across, down, batch as u64];
        let along_k = |strides: [isize; 2]| u32::from(strides[0].unsigned_abs() <= strides[1].unsigned_abs());
        let mut spec = [
            &tile.spec[..],
            &[g.act.map_or(255, |act| act as u32)],
            &[g.bias.is_some(), g.residual.is_some()].map(u32::from),
            &[along_k([g.a.strides[3], g.a.strides[2]]), along_k([g.b.strides[2], g.b.strides[3]])],
        ]
        .concat();
        let shader = match way {
            Way::Words => {
                spec.push(g.b.stored as u32);
                Shader::Gemm
            }
            Way::Matrices { .. } => {
                let s = g.b.strides;
                let words = s[2] == 1 && b_at % 2 == 0 && [s[0], s[1], s[3]].iter().all(|s| s % 2 == 0);
                spec.push(u32::from(words));
                matrices::shader(g.b.stored)
            }
        };
        let (sa, sb, sc) = (g.a.strides, g.b.strides, g.c.strides);
        let push: Vec<u32> = [
            &[m, n, k, batch, c[1]].map(|n| n as u32)[..],
            &[a_at],
            &[sa[2], sa[3], sa[0], sa[1]].map(|s| s as i32 as u32),
            &[b_at],
            &[sb[2], sb[3], sb[0], sb[1]].map(|s| s as i32 as u32),
            &[c_at],
            &[sc[2], sc[0], sc[1]].map(|s| s as i32 as u32),
            &[bias_at, residual_at, g.alpha.to_bits()],
        ]
        .concat();
        let work = 2 * (m * n * k.max(1) * batch) as u64;
        self.dispatch(Kernel { shader, spec: &spec, bindings: &bindings, push: &push, groups, work })
    }
}
