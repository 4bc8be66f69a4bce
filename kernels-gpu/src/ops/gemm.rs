//! Matrix products.

use kernels_cpu::map::Unary;

use crate::device::{Device, Kernel};
use crate::error::{Error, Result};
use crate::shaders::Shader;
use crate::view::View;

/// C = act(alpha A B + bias + residual).
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// [b0, b1, m, k] in any layout.
    pub a: View<'a>,
    /// [b0, b1, k, n] in any layout.
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

/// Threads across and down of a workgroup, and elements of each.
const LARGE: [u32; 4] = [16, 16, 4, 4];
const SMALL: [u32; 4] = [8, 8, 4, 4];
/// Depth of a tile.
const DEPTH: u32 = 16;

impl Device {
    /// Computes a product.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn gemm(&self, g: &Gemm<'_>) -> Result<()> {
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
            let [(left, a_), (right, b_)] = [g.a.bind(0)?, g.b.bind(1)?];
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
        let tiles = |[gx, gy, tm, tn]: [u32; 4]| {
            [n.div_ceil((gx * tn) as usize) as u64, m.div_ceil((gy * tm) as usize) as u64, batch as u64]
        };
        // Few large tiles would leave most of a device idle.
        let large = tiles(LARGE).iter().product::<u64>() >= 64 && m > 32 && n > 32 && self.limits().threads >= 256;
        let tile = if large { LARGE } else { SMALL };
        // Along the batch alone a workgroup goes on to the next.
        let (groups, most) = (tiles(tile), self.limits().groups);
        if (0..2).any(|i| groups[i] > u64::from(most[i])) {
            return Err(Error::Limit(format!("a product of {c:?} has more tiles than the device takes")));
        }
        let along_k = |strides: [isize; 2]| u32::from(strides[0].unsigned_abs() <= strides[1].unsigned_abs());
        let spec = [
            &[tile[0] * tile[1]][..],
            &tile,
            &[DEPTH, g.act.map_or(255, |act| act as u32)],
            &[g.bias.is_some(), g.residual.is_some()].map(u32::from),
            &[along_k([g.a.strides[3], g.a.strides[2]]), along_k([g.b.strides[2], g.b.strides[3]])],
        ]
        .concat();
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
        self.dispatch(Kernel { shader: Shader::Gemm, spec: &spec, bindings: &bindings, push: &push, groups, work })
    }
}
