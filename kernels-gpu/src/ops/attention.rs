//! Scaled dot-product attention whose weights are never stored: softmax block by block, and for gradients the weights once more from their
//! log-sum-exp (Dao 2023, "FlashAttention-2").

mod matrices;

pub(crate) use matrices::BLOCKS;

use super::gemm::{aligned, strides};
use crate::device::{Device, Kernel, Limits};
use crate::error::{Error, Result};
use crate::matrices::By;
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View};

/// y = softmax(scale q k^T) v, with dropout of the softmax where asked for. Where q, k and v are stored in one type of half and the device has cooperative
/// matrices for it that are right and quicker, they multiply, with sums of f32, and weights are rounded to it; else all is widened to f32.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// [b, h, tq, d] in any layout, f32 or stored in half.
    pub q: View<'a>,
    /// [b, h, tk, d], likewise.
    pub k: View<'a>,
    /// [b, h, tk, d], likewise.
    pub v: View<'a>,
    /// Factor of the products.
    pub scale: f32,
    /// Query i sees keys up to i + tk - tq.
    pub causal: bool,
    /// Bytes [b, tk], not 0 where a key may be seen.
    pub mask: Option<&'a Memory>,
    /// Probability and key of the draw, which is kernels-cpu's.
    pub dropout: Option<(f64, u64)>,
}

/// What a kernel computes of each row: means of values, a gradient of a query, or those of a key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Means,
    Queries,
    Keys,
}

impl Of {
    /// Products of rows with columns, and sums over columns, of each element.
    fn products(self) -> [u32; 2] {
        match self {
            Self::Means => [1, 1],
            Self::Queries => [2, 1],
            Self::Keys => [2, 2],
        }
    }
}

/// Threads across and down a workgroup's block, rows and columns of each, and vectors of a row in a slice of operands.
#[derive(Clone, Copy, Debug)]
struct Tile {
    across: u32,
    down: u32,
    rows: u32,
    cols: u32,
    depth: u32,
}

/// Threads of a workgroup.
const THREADS: [u32; 3] = [64, 128, 256];
/// Rows and columns of a thread that there are kernels for.
const SIDES: [[u32; 6]; 2] = [[1, 2, 4, 5, 7, 8], [1, 2, 3, 4, 5, 7]];
/// Vectors of a row in a slice.
const DEPTHS: [u32; 3] = [1, 2, 4];
/// Elements that a thread may hold in registers.
const HELD: u32 = 120;

impl Tile {
    /// Those that there is room for; where `small`, those that are compiled soon.
    fn all(of: Of, width: u32, limits: &Limits) -> impl Iterator<Item = Self> {
        let (most, shared, large) = (limits.threads, limits.shared, limits.large_tiles);
        let sides = move |side: usize| SIDES[side].into_iter().filter(move |&n| large || n <= 4);
        // What a row of threads holds of a row of `width` is a multiple of four numbers for each.
        let across = [4, 8, 16].into_iter().filter(move |across| 2 * across <= width.max(8));
        let threads = THREADS.into_iter().filter(move |&n| n == THREADS[0] || large && n <= most);
        let depths = DEPTHS.into_iter().filter(move |&n| n == 1 || large && n < width.div_ceil(2));
        let blocks = across.flat_map(move |across| threads.clone().map(move |n| (across, n / across)));
        let blocks = blocks.flat_map(move |block| depths.clone().map(move |depth| (block, depth)));
        let tiles = blocks.flat_map(move |((across, down), depth)| {
            sides(0).flat_map(move |rows| sides(1).map(move |cols| Self { across, down, rows, cols, depth }))
        });
        tiles.filter(move |tile| width > 0 && tile.fits(of, width, shared))
    }

    fn threads(&self) -> u32 {
        self.across * self.down
    }

    /// Rows and columns of a workgroup.
    fn sides(&self) -> [u32; 2] {
        [self.down * self.rows, self.across * self.cols]
    }

    /// Vectors of a row of results that a thread has.
    fn vectors(&self, width: u32) -> u32 {
        width.div_ceil(4 * self.across)
    }

    fn spec(&self) -> [u32; 5] {
        [self.across, self.down, self.rows, self.cols, self.depth]
    }

    fn plan(&self, of: Of) -> Plan {
        let (shader, last) = match of {
            Of::Means => (Shader::Attention, None),
            _ => (Shader::AttentionBackward, Some(u32::from(of == Of::Keys))),
        };
        let spec = self.spec().into_iter().chain(last).collect();
        Plan { shader, threads: self.threads(), rows: self.sides()[0], spec, unit: 4 }
    }

    fn fits(&self, of: Of, width: u32, shared: u32) -> bool {
        let ([scores, sums], [rows, cols]) = (of.products(), self.sides());
        let slice = ((rows + cols) * (self.depth | 1)).max(4 * self.depth * self.across * self.vectors(width));
        let weights = rows * ((cols / 4 + 1) / 4 * 4 + 2);
        (cols / 4).is_multiple_of(self.depth)
            && self.rows * (scores * self.cols + sums * 4 * self.vectors(width)) <= HELD
            && 16 * (2 * slice + weights) <= shared
    }

    /// What a grid of rows and columns takes, in time, roughly: instructions of a thread, of as many workgroups one after the other as fall to a core.
    /// That an H100 has one workgroup to a core at a time, which takes some 2.4 clocks for an instruction of each of up to 128 threads, not much more
    /// for twice as many and no less for half of them, explains what it took for tiles of the kernels before these to a quarter of it.
    fn cost(&self, of: Of, width: u32, [items, rows, cols]: [u64; 3], cores: u32) -> u64 {
        let ([scores, sums], [height, breadth]) = (of.products().map(u64::from), self.sides().map(u64::from));
        let [m, n, d, c] = [self.rows, self.cols, self.depth, self.vectors(width)].map(u64::from);
        let blocks = cols.div_ceil(breadth);
        // Columns of a thread, of all blocks.
        let wide = if self.depth == 1 { blocks * n } else { cols.div_ceil(u64::from(self.across)) };
        let (steps, fours) = (u64::from(width.div_ceil(4 * self.depth)), cols.div_ceil(4 * d) * d);
        // Reading a vector of shared memory takes a core as long as three products.
        let scored = steps * d * (4 * m * wide + 3 * (m * blocks + wide));
        let products = scores * scored + sums * fours * (16 * m * c + 3 * (m + 4 * c));
        // Bringing a slice and waiting for each other; weights.
        let slices = 50 * (scores * steps * blocks + sums * fours / d);
        let weights = 25 * m * n * blocks;
        let clocks = 24.max(13 * u64::from(self.threads()) / 128);
        (items * rows.div_ceil(height)).div_ceil(u64::from(cores)) * (products + slices + weights) * clocks
    }
}

/// The operands of a kernel: of rows, then of columns.
type Operands<'a> = [Option<View<'a>>; 4];

/// A kernel and its workgroups.
struct Plan {
    shader: Shader,
    threads: u32,
    /// Rows of a workgroup.
    rows: u32,
    /// Constants beyond those that all have.
    spec: Vec<u32>,
    /// Elements of operands that are read at once, where they lie so.
    unit: usize,
}

/// And what it works on.
struct Pass<'a> {
    plan: Plan,
    groups: u64,
    from: Operands<'a>,
    /// Bound beside operands and results.
    more: Vec<Binding>,
    to: &'a [View<'a>],
}

impl Attention<'_> {
    /// Batch, heads, queries, keys, and a head's width.
    fn sizes(&self) -> [usize; 5] {
        let (q, k) = (self.q.dims, self.k.dims);
        let fits = q.len() == 4 && k == self.v.dims && q[..2] == k[..2] && q[3] == k[3];
        assert!(fits, "attention: q {q:?}, k {k:?}, v {:?}", self.v.dims);
        let [b, h, tq, tk, d] = [q[0], q[1], q[2], k[2], q[3]];
        assert!(self.mask.is_none_or(|mask| mask.len() == b * tk), "attention: bytes of the mask");
        [b, h, tq, tk, d]
    }

    /// What is bound beside operands and results: `first`, and the mask.
    fn bound(&self, first: Binding) -> Result<Vec<Binding>> {
        let mask = self.mask.map(|mask| Binding::words(5, mask, 0, mask.len().div_ceil(4)));
        Ok([first].into_iter().chain(mask.transpose()?.map(|(mask, _)| mask)).collect())
    }
}

impl Device {
    /// y [b, tq, h, d], contiguous, and the logarithm of each query's sum of weights, `lse` [b, h, tq]. A query that sees no key is 0.
    ///
    /// # Errors
    /// As [`Self::copy`]; also where a head is too wide for a workgroup.
    pub fn attention(&self, a: &Attention<'_>, y: View<'_>, lse: &Memory) -> Result<()> {
        let by = a.stored().map_or(Ok(None), |stored| self.attention_way(stored))?;
        self.attention_by(a, y, lse, by)
    }

    /// As [`Self::attention`], by matrices where there is room for them, or in f32.
    pub(crate) fn attention_by(&self, a: &Attention<'_>, y: View<'_>, lse: &Memory, by: Option<By>) -> Result<()> {
        let [b, h, tq, tk, d] = a.sizes();
        assert!(y.dims == [b, tq, h, d] && lse.len() == 4 * b * h * tq, "attention: {:?}", y.dims);
        if b * h * tq == 0 {
            return Ok(());
        }
        if tk == 0 {
            self.fill(f32::NEG_INFINITY, View::new(lse, 0, &[b * h * tq], &[1]))?;
            return self.fill(0.0, y);
        }
        let lse = Binding::words(4, lse, 0, b * h * tq)?.0.writing();
        self.attend(Of::Means, a, [Some(a.q), None, Some(a.k), Some(a.v)], lse, &[y], by)
    }

    /// Of each query [b, h, tq] what its gradients need: two numbers. y [b, tq, h, d] and `lse` are what [`Self::attention`] made, dy [b, tq, h, d] in any
    /// layout.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn attention_sums(&self, a: &Attention<'_>, y: View<'_>, lse: View<'_>, dy: View<'_>) -> Result<Memory> {
        let [b, h, tq, _, d] = a.sizes();
        assert!(y.dims == [b, tq, h, d] && dy.dims == y.dims && lse.numel() == b * h * tq, "attention: {:?}", dy.dims);
        let sums = self.memory(8 * b * h * tq)?;
        if y.numel() > 0 {
            let tile = Tile { across: 8, down: 8, rows: 1, cols: 1, depth: 1 };
            let (lse, at) = lse.bind(4)?;
            assert_eq!(at, 0, "attention: where the log-sum-exp begins");
            let more = vec![lse, Binding::words(6, &sums, 0, 2 * b * h * tq)?.0.writing()];
            let groups = (b * h * tq).div_ceil(tile.down as usize) as u64;
            let (y, dy) = (by_head(&y), by_head(&dy));
            let from = [Some(y.view()), Some(dy.view()), None, None];
            let (shader, spec) = (Shader::AttentionSums, tile.spec()[..4].to_vec());
            let plan = Plan { shader, threads: tile.threads(), rows: tile.down, spec, unit: 4 };
            self.record(a, Pass { plan, groups, from, more, to: &[] })?;
        }
        Ok(sums)
    }

    /// The gradient of q, dq [b, tq, h, d], contiguous; `sums` are [`Self::attention_sums`].
    ///
    /// # Errors
    /// As [`Self::attention`].
    pub fn attention_dq(&self, a: &Attention<'_>, dy: View<'_>, sums: &Memory, dq: View<'_>) -> Result<()> {
        let [b, h, tq, _, d] = a.sizes();
        assert!(dq.dims == [b, tq, h, d] && dy.dims == dq.dims, "attention: {:?}", dq.dims);
        self.attention_gradients(a, dy, sums, &[dq], self.gradients_way(a)?)
    }

    /// The gradients of k and v, each [b, tk, h, d], contiguous; `sums` are [`Self::attention_sums`].
    ///
    /// # Errors
    /// As [`Self::attention`].
    pub fn attention_dkv(&self, a: &Attention<'_>, dy: View<'_>, sums: &Memory, dkv: [View<'_>; 2]) -> Result<()> {
        let [b, h, tq, tk, d] = a.sizes();
        let fits = dkv.iter().all(|x| x.dims == [b, tk, h, d]) && dy.dims == [b, tq, h, d];
        assert!(fits, "attention: {:?} of {:?}", dkv[0].dims, dy.dims);
        self.attention_gradients(a, dy, sums, &dkv, self.gradients_way(a)?)
    }

    fn gradients_way(&self, a: &Attention<'_>) -> Result<Option<By>> {
        a.stored().map_or(Ok(None), |stored| self.attention_backward_way(stored))
    }

    /// dq, or dk and dv, by matrices where there is room for them, or in f32.
    pub(crate) fn attention_gradients(
        &self,
        a: &Attention<'_>,
        dy: View<'_>,
        sums: &Memory,
        to: &[View<'_>],
        by: Option<By>,
    ) -> Result<()> {
        let dy = by_head(&dy);
        let (queries, keys) = ([Some(a.q), Some(dy.view())], [Some(a.k), Some(a.v)]);
        let (of, [[a1, a2], [b1, b2]]) =
            if to.len() == 1 { (Of::Queries, [queries, keys]) } else { (Of::Keys, [keys, queries]) };
        let from = [a1, a2, b1, b2];
        if from.iter().flatten().any(|x| x.numel() == 0) {
            return to.iter().try_for_each(|&x| self.fill(0.0, x));
        }
        self.attend(of, a, from, Binding::words(4, sums, 0, sums.len() / 4)?.0, to, by)
    }

    fn attend(
        &self,
        of: Of,
        a: &Attention<'_>,
        from: Operands<'_>,
        first: Binding,
        to: &[View<'_>],
        by: Option<By>,
    ) -> Result<()> {
        let [b, h, tq, tk, d] = a.sizes();
        let (rows, cols) = if of == Of::Keys { (tk, tq) } else { (tq, tk) };
        let plan = by.and_then(|by| self.block(of, a, by, [b * h, rows, d]));
        let plan = plan.or_else(|| self.tiled(of, d as u32, [b * h, rows, cols].map(|n| n as u64)));
        let plan = plan.ok_or_else(|| Error::Limit(format!("no room for heads of {d}")))?;
        let groups = (b * h * rows.div_ceil(plan.rows as usize)) as u64;
        self.record(a, Pass { plan, groups, from, more: a.bound(first)?, to })
    }

    /// The kernel of f32 in the tile that is likely to be quickest; `None` where there is no room for any.
    fn tiled(&self, of: Of, width: u32, grid: [u64; 3]) -> Option<Plan> {
        let limits = self.limits();
        let tile = Tile::all(of, width, limits).min_by_key(|tile| tile.cost(of, width, grid, limits.cores));
        tile.map(|tile| tile.plan(of))
    }

    fn record(&self, a: &Attention<'_>, pass: Pass<'_>) -> Result<()> {
        let Pass { plan: Plan { shader, threads, spec, unit, .. }, groups, from, more, to } = pass;
        let [b, h, tq, tk, d] = a.sizes();
        let counts = [b * h, h, tq, tk].map(u32::try_from);
        if u32::try_from(groups).is_err()
            || (b * h) as u64 * tq as u64 > u64::from(u32::MAX)
            || counts.iter().any(std::result::Result::is_err)
        {
            return Err(Error::Limit(format!("attention of {:?} is more than a kernel counts", a.q.dims)));
        }
        let (mut bindings, mut strided, mut vectors) = (Vec::new(), [0; 20], true);
        for (i, view) in from.iter().enumerate() {
            let Some(view) = view else { continue };
            let (binding, at) = view.bind_stored(i as u32)?;
            bindings.push(binding);
            strided[5 * i] = at;
            (0..4).for_each(|k| strided[5 * i + 1 + k] = view.strides[k] as i32 as u32);
            vectors &= view.strides[3] == 1 && aligned(unit, d, at, &strides(view)[..3]);
        }
        bindings.extend(more);
        let mut places = [0; 2];
        for (i, view) in to.iter().enumerate() {
            assert!(view.is_contiguous(), "attention: a result of {:?} with gaps", view.dims);
            let (binding, at) = view.bind(6 + i as u32)?;
            bindings.push(binding.writing());
            places[i] = at;
            vectors &= at.is_multiple_of(4);
        }
        // The other result, which not every kernel has, may not seem to be written over something that is only read.
        bindings.extend(bindings.last().filter(|last| last.number == 6).map(|last| Binding { number: 7, ..*last }));
        let (share, key) = a.dropout.unwrap_or_default();
        let (least, grown) = ((share * 4_294_967_296.0).ceil() as u32, (1.0 / (1.0 - share)) as f32);
        let flags = [vectors, a.causal, a.mask.is_some(), a.dropout.is_some()].map(u32::from);
        let stored = from.map(|x| x.map_or(0, |x| x.stored as u32));
        let spec = [&[threads, d as u32], &flags[..], &stored, &spec].concat();
        let push = [
            &[b * h, h, tq, tk].map(|n| n as u32)[..],
            &[a.scale.to_bits(), key as u32, (key >> 32) as u32, least, grown.to_bits()],
            &places,
            &strided,
        ]
        .concat();
        let work = (2 * b * h * tq * tk.max(1) * d) as u64 * from.iter().flatten().count() as u64;
        self.dispatch(Kernel { shader, spec: &spec, bindings: &bindings, push: &push, groups: [groups, 1, 1], work })
    }
}

/// [b, n, h, d] as [b, h, n, d].
struct ByHead<'a> {
    of: View<'a>,
    dims: [usize; 4],
    strides: [isize; 4],
}

fn by_head<'a>(of: &View<'a>) -> ByHead<'a> {
    let order = [0, 2, 1, 3];
    ByHead { of: *of, dims: order.map(|k| of.dims[k]), strides: order.map(|k| of.strides[k]) }
}

impl ByHead<'_> {
    fn view(&self) -> View<'_> {
        View { dims: &self.dims, strides: &self.strides, ..self.of }
    }
}
