//! Matrix products.

use kernels_cpu::map::Unary;

use crate::device::{Device, Kernel};
use crate::error::{Error, Result};
use crate::matrices::{self, Shape};
use crate::shaders::Shader;
use crate::view::{Stored, View};

/// C = act(alpha A B + bias + residual).
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// [b0, b1, m, k] in any layout, f32 or stored in half.
    pub a: View<'a>,
    /// [b0, b1, k, n] in any layout, f32 or stored in half.
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
    /// In what the right operand is stored as, by cooperative matrices, in the tiles from this number on.
    Matrices { shape: Shape, from: usize },
}

/// What a workgroup makes: rows and columns of C, and the constants of its shader that say so.
pub(crate) struct Tile {
    rows: u32,
    cols: u32,
    spec: Vec<u32>,
    /// Bytes of shared memory.
    shared: u32,
    /// What it reaches of the highest rate: where a core has several of them, and where it has fewer.
    rates: [f64; 2],
}

/// Tiles of f32, the largest first: threads across and down, and columns and rows of each. Rates as seen on an H100: 40, 36, 31 TFLOP/s.
const WORDS: [([u32; 4], f64); 4] =
    [([16, 16, 8, 16], 1.0), ([16, 16, 8, 8], 0.9), ([8, 8, 8, 8], 0.75), ([8, 8, 4, 4], 0.4)];
/// Tiles of cooperative matrices: subgroups down and across, matrices of each, and their depth. Rates as seen on an H100 with both operands in
/// bf16: 234, 234 and 135 TFLOP/s; the first needs several workgroups on a core to hide what it waits for.
pub(crate) const MATRICES: [([u32; 4], u32, [f64; 2]); 4] = [
    ([2, 2, 4, 4], 32, [1.0, 0.72]),
    ([2, 4, 4, 2], 64, [0.93, 0.93]),
    ([2, 2, 2, 2], 32, [0.57, 0.57]),
    ([2, 2, 1, 1], 32, [0.25, 0.25]),
];
/// Several.
const SEVERAL: u64 = 4;
/// Parts of k begin at multiples of the depth of any tile.
const WHOLE: usize = 64;
/// Sums of a product over a long k are parted where its tiles alone would leave most of a device idle, down to this length.
const SHORTEST: usize = 256;
/// What a byte of the memory's traffic takes, in multiplications of one core.
const OF_A_BYTE: f64 = 0.06;

impl Tile {
    fn count(&self, [m, n]: [usize; 2]) -> [u64; 2] {
        [n.div_ceil(self.cols as usize) as u64, m.div_ceil(self.rows as usize) as u64]
    }

    fn words([across, down, cols, rows]: [u32; 4], (deep, shared): (bool, u32), rate: f64) -> Self {
        let (m, n) = (down * rows, across * cols);
        // Two tiles of each operand, with a quad more in each row.
        let bytes = |depth: u32| 2 * depth * (m + n + 8) * 4;
        let depth = if deep && bytes(16) <= shared { 16 } else { 8 };
        let spec = vec![across * down, across, down, rows, cols, depth];
        Self { rows: m, cols: n, spec, shared: bytes(depth), rates: [rate; 2] }
    }

    fn matrices(tile: [u32; 4], depth: u32, subgroup: u32, shape: Shape, rates: [f64; 2]) -> Self {
        let matrices::Tile { sides: [rows, cols], spec, shared } = matrices::Tile::new(tile, depth, subgroup, shape);
        Self { rows, cols, spec, shared, rates }
    }
}

/// An operand as kernels read it.
struct Operand {
    strides: [isize; 4],
    /// Whether neighbours along k are read together, or along rows and columns.
    along_k: bool,
    /// Whether `unit` of them are read at once.
    at_once: bool,
}

impl Operand {
    /// With the numbers of its dimensions of rows (or columns) and of k, from `at` on.
    fn new(x: &View<'_>, [other, depth]: [usize; 2], at: u32, unit: usize) -> Self {
        let strides = strides(x);
        let apart = |i: usize| if x.dims[i] == 1 { usize::MAX } else { strides[i].unsigned_abs() };
        let along_k = apart(depth) <= apart(other);
        let (along, across) = if along_k { (depth, other) } else { (other, depth) };
        let rest = [strides[0], strides[1], strides[across]];
        let at_once = strides[along] == 1 && aligned(unit, x.dims[along], at, &rest);
        Self { strides, along_k, at_once }
    }
}

/// Of four dimensions. Where there is one of a dimension alone, its stride says nothing.
pub(super) fn strides(x: &View<'_>) -> [isize; 4] {
    [0, 1, 2, 3].map(|i| if x.dims[i] == 1 { 0 } else { x.strides[i] })
}

/// Whether rows of `length` elements, the first of them `at`, the others `strides` apart, fall into units that begin at multiples of one.
pub(super) fn aligned(unit: usize, length: usize, at: u32, strides: &[isize]) -> bool {
    let whole = |n: usize| n.is_multiple_of(unit);
    whole(length) && whole(at as usize) && strides.iter().all(|s| whole(s.unsigned_abs()))
}

/// What the products of a product are multiplied in.
fn multiplied(g: &Gemm<'_>) -> Stored {
    if g.b.stored == Stored::F32 { g.a.stored } else { g.b.stored }
}

impl Device {
    /// Computes a product: in f32, or, where an operand is stored in half and the device has cooperative matrices for it that are right
    /// and quicker, in half with sums of f32; the other operand is then rounded.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn gemm(&self, g: &Gemm<'_>) -> Result<()> {
        let (a, b) = (g.a.stored, g.b.stored);
        let one = a == b || [a, b].contains(&Stored::F32);
        self.product(g, if one { self.way(multiplied(g))? } else { Way::Words })
    }

    /// The tile, and the number of parts of k, that a product is likely to be quickest in; `None` where the device has no room for any.
    fn tile(&self, way: Way, [m, n, k, batch]: [usize; 4], may_part: bool) -> Option<(Tile, usize)> {
        let (limits, subgroup) = (self.limits(), self.0.matrices.subgroup);
        let tiles: Vec<Tile> = match way {
            Way::Words => {
                let from = if limits.large_tiles { 0 } else { WORDS.len() - 1 };
                WORDS[from..]
                    .iter()
                    .map(|&(tile, rate)| Tile::words(tile, (limits.large_tiles, limits.shared), rate))
                    .collect()
            }
            Way::Matrices { shape, from } => {
                let made = |&(tile, depth, rates): &_| Tile::matrices(tile, depth, subgroup, shape, rates);
                MATRICES[from..].iter().map(made).collect()
            }
        };
        let fitting = tiles.into_iter().filter(|t| t.spec[0] <= limits.threads && t.shared <= limits.shared);
        // A core makes a tile after the other; the sums of parts are written, read and added.
        let cost = |tile: &Tile, parts: usize| {
            let tiles = tile.count([m, n]).iter().product::<u64>() * (batch * parts) as u64;
            let depth = k.div_ceil(parts).max(1) as f64;
            let each = tiles.div_ceil(u64::from(limits.cores));
            let products = each as f64 * f64::from(tile.rows * tile.cols) * depth;
            let sums = if parts > 1 { 4.0 * (m * n * (2 * parts + 1)) as f64 } else { 0.0 };
            products / tile.rates[usize::from(each < SEVERAL)] + sums * OF_A_BYTE
        };
        // What matrices make of few sums of many terms, as gradients of weights are, is too quick for a device to be busy with less.
        let most = if way == Way::Words { 16 } else { 64 };
        let parts =
            [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|&p| p == 1 || may_part && p <= most && k / p >= SHORTEST);
        let parts: Vec<usize> = parts.collect();
        let all = fitting.filter_map(|tile| {
            let costs = parts.iter().map(|&p| (cost(&tile, p), p));
            costs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(cost, p)| (cost, tile, p))
        });
        all.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, tile, parts)| (tile, parts))
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
        let plain = g.bias.is_none() && g.residual.is_none() && g.act.is_none();
        let sizes = [m, n, k, batch];
        let may_part = plain && batch == 1 && g.c.is_contiguous();
        let chosen = |way| self.tile(way, sizes, may_part).map(|(tile, parts)| (way, tile, parts));
        let (way, tile, parts) =
            chosen(way).or_else(|| chosen(Way::Words)).ok_or_else(|| Error::Limit("no room for a tile".to_owned()))?;
        let held = self.memory(if parts > 1 { 4 * parts * m * n } else { 0 })?;
        let (held_dims, held_strides) = ([1, parts, m, n], [0, (m * n) as isize, n as isize, 1]);
        let to = if parts > 1 { View::new(&held, 0, &held_dims, &held_strides) } else { g.c };
        let (bound, c_at) = to.bind(2)?;
        let mut bindings = vec![bound.writing()];
        // A product over nothing is zero; its operands are then not read, and nothing is bound for them.
        let (mut a_at, mut b_at) = (0, 0);
        if k > 0 {
            let [(left, a_), (right, b_)] = [g.a.bind_stored(0)?, g.b.bind_stored(1)?];
            bindings.extend([left, right]);
            (a_at, b_at) = (a_, b_);
        } else {
            bindings.extend([0, 1].map(|number| crate::view::Binding { number, ..bound }));
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
        let ([across, down], most) = (tile.count([m, n]), self.limits().groups);
        if across > u64::from(most[0]) || down > u64::from(most[1]) {
            return Err(Error::Limit(format!("a product of {c:?} has more tiles than the device takes")));
        }
        let unit = if matches!(way, Way::Words) { 4 } else { 8 };
        let (a_, b_) = (Operand::new(&g.a, [2, 3], a_at, unit), Operand::new(&g.b, [3, 2], b_at, unit));
        let sc = strides(&to);
        let quads = aligned(4, n, c_at, &sc[..3]) && (g.residual.is_none() || residual_at.is_multiple_of(4));
        let spec = [
            &tile.spec[..],
            &[g.act.map_or(255, |act| act as u32)],
            &[g.bias.is_some(), g.residual.is_some(), a_.along_k, b_.along_k, a_.at_once, b_.at_once, quads]
                .map(u32::from),
            &[g.a.stored, g.b.stored].map(|stored| stored as u32),
        ]
        .concat();
        let shader = match way {
            Way::Words => Shader::Gemm,
            Way::Matrices { .. } => matrices::shader(multiplied(g)),
        };
        // Parts begin where tiles do.
        let chunk = k.div_ceil(parts).next_multiple_of(WHOLE);
        let (sa, sb) = (a_.strides, b_.strides);
        let push: Vec<u32> = [
            &[m, n, k, batch, c[1]].map(|n| n as u32)[..],
            &[a_at],
            &[sa[2], sa[3], sa[0], sa[1]].map(|s| s as i32 as u32),
            &[b_at],
            &[sb[2], sb[3], sb[0], sb[1]].map(|s| s as i32 as u32),
            &[c_at],
            &[sc[2], sc[0], sc[1]].map(|s| s as i32 as u32),
            &[bias_at, residual_at, g.alpha.to_bits()],
            &[parts, chunk, m * n].map(|n| n as u32),
        ]
        .concat();
        let work = 2 * (m * n * k.max(1) * batch) as u64;
        let groups = [across, down, (batch * parts) as u64];
        self.dispatch(Kernel { shader, spec: &spec, bindings: &bindings, push: &push, groups, work })?;
        if parts > 1 { self.sum(to, [1, parts, m * n], g.c) } else { Ok(()) }
    }
}
