//! Vector operations that a kernel is written with once, and the one dispatch per op to an instruction set.
//!
//! A token (a value of a type that implements [`Simd`]) can be made only by [`dispatch`], [`eval_on`] and those beside it, which check the
//! machine first; so safe code cannot reach an instruction that the machine lacks.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod scalar;

use core::mem::MaybeUninit;

use crate::isa::Isa;

/// `LANES` numbers at a time.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Numbers per vector.
    const LANES: usize;
    /// The tier this token stands for.
    const ISA: Isa;
    /// Vector of f32.
    type F: Copy;
    /// Vector of i32.
    type I: Copy;
    /// One truth value per lane.
    type M: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// They must be readable at `p`; any alignment will do.
    unsafe fn load_ptr(self, p: *const f32) -> Self::F;
    /// Writes `LANES` numbers.
    ///
    /// # Safety
    /// They must be writable at `p`; any alignment will do.
    unsafe fn store_ptr(self, x: Self::F, p: *mut f32);
    /// Asks for the cache line of `p`, which may be anywhere.
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}
    /// As [`Simd::prefetch`], into the second-level cache.
    #[inline(always)]
    fn prefetch_far(self, _p: *const f32) {}
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; `b` where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a b + c; rounded once where the tier has it (all but portable).
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// |a|
    fn abs(self, a: Self::F) -> Self::F;
    /// Square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// a 2^n for integral n from -150 to 150, rounded once.
    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        // In two steps, because 2^128 has no float.
        let n = self.to_i32(n);
        let half = self.shr_i::<1>(n);
        let power = |k| self.as_float(self.shl_i::<23>(self.add_i(k, self.splat_i(127))));
        self.mul(self.mul(a, power(half)), power(self.sub_i(n, half)))
    }
    /// a < b
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// a <= b
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    /// a == b
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// a where m, else b.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Integral numbers within the range of i32.
    fn to_i32(self, a: Self::F) -> Self::I;
    /// Nearest float.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// The bits.
    fn bits(self, a: Self::F) -> Self::I;
    /// The float that has these bits.
    fn as_float(self, a: Self::I) -> Self::F;
    /// a + b, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a - b, wrapping.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a and b
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a shifted left by N bits.
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// a shifted right by N bits, keeping the sign.
    fn shr_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// sum + a b of the two i16 in each lane, wrapping.
    fn dot_i16(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// sum + a b of the four bytes in each lane, those of `a` unsigned and those of `b` signed, wrapping.
    ///
    /// # Safety
    /// In kernels that [`eval_bytes`] runs alone.
    unsafe fn dot_bytes(self, _sum: Self::I, _a: Self::I, _b: Self::I) -> Self::I {
        unreachable!("{} has no products of bytes", Self::ISA)
    }
    /// sum + a b of the two bf16 in each lane, subnormal numbers taken for 0.
    ///
    /// # Safety
    /// In kernels that [`eval_bf16`] runs alone.
    unsafe fn dot_bf16(self, _sum: Self::F, _a: Self::F, _b: Self::F) -> Self::F {
        unreachable!("{} has no products of bf16", Self::ISA)
    }

    /// The first `LANES` numbers of `x`.
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        assert!(x.len() >= Self::LANES);
        // SAFETY: checked.
        unsafe { self.load_ptr(x.as_ptr()) }
    }

    /// Over the first `LANES` numbers of `out`.
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32]) {
        assert!(out.len() >= Self::LANES);
        // SAFETY: checked.
        unsafe { self.store_ptr(x, out.as_mut_ptr()) }
    }

    /// Fewer than `LANES` numbers, the other lanes `fill`.
    #[inline(always)]
    fn load_partial(self, x: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; 16];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first `out.len()` lanes, fewer than `LANES`.
    #[inline(always)]
    fn store_partial(self, x: Self::F, out: &mut [f32]) {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }

    /// Numbers from position `i` on, `fill` beyond the end.
    #[inline(always)]
    fn load_at(self, x: &[f32], i: usize, fill: f32) -> Self::F {
        let x = &x[i..];
        if x.len() >= Self::LANES { self.load(x) } else { self.load_partial(x, fill) }
    }

    /// Over the numbers from position `i` on, as many as there are.
    #[inline(always)]
    fn store_at(self, a: Self::F, out: &mut [f32], i: usize) {
        let out = &mut out[i..];
        if out.len() >= Self::LANES { self.store(a, out) } else { self.store_partial(a, out) }
    }

    /// The upper halves of two vectors' words, two to a word: those of `a`, then those of `b`.
    #[inline(always)]
    fn upper_halves(self, a: Self::F, b: Self::F) -> Self::F {
        let (mut words, mut halves) = ([0.0; 32], [0.0; 16]);
        self.store(a, &mut words);
        self.store(b, &mut words[Self::LANES..]);
        for (to, pair) in halves.iter_mut().zip(words.chunks_exact(2)) {
            *to = f32::from_bits((pair[0].to_bits() >> 16) | (pair[1].to_bits() & 0xffff_0000));
        }
        self.load(&halves)
    }

    /// Transposes `LANES` columns of `rows` (1 to `LANES`) rows that lie `stride` apart: number r of the vector written at
    /// `out + column * step` is from row r. Lanes beyond `rows` repeat the last row.
    ///
    /// # Safety
    /// `LANES` numbers must be readable from every row, and writable at every place.
    #[inline(always)]
    unsafe fn transpose(self, x: *const f32, stride: isize, rows: usize, out: *mut f32, step: usize) {
        for column in 0..Self::LANES {
            for r in 0..Self::LANES {
                // SAFETY: the caller's promise.
                unsafe { *out.add(column * step + r) = *x.offset(r.min(rows - 1) as isize * stride).add(column) };
            }
        }
    }

    /// Sum of the lanes, as a tree of halves: the same order on every call.
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let mut lanes = [0.0f32; 16];
        self.store(a, &mut lanes);
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }

    /// Largest lane; NaN lanes may be passed over.
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        let mut lanes = [0.0f32; 16];
        self.store(a, &mut lanes);
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// `[f(0), f(1), ...]`, as [`core::array::from_fn`], whose layers of functions may stay calls inside a kernel: vectors would pass through memory.
#[inline(always)]
pub(crate) fn array<T: Copy, const N: usize>(mut f: impl FnMut(usize) -> T) -> [T; N] {
    let mut all = [const { MaybeUninit::uninit() }; N];
    for (i, place) in all.iter_mut().enumerate() {
        place.write(f(i));
    }
    // SAFETY: every place was written.
    unsafe { all.as_ptr().cast::<[T; N]>().read() }
}

/// A kernel written over any [`Simd`].
pub trait SimdOp {
    /// What it gives.
    type Output;
    /// The kernel. Everything it calls should be `#[inline(always)]`, so that it is compiled for the tier.
    fn eval<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `op` on the tier in use. Once per op, not once per row.
#[inline]
pub fn dispatch<O: SimdOp>(op: O) -> O::Output {
    // The tier in use is one that the machine has.
    run(Isa::current(), op)
}

/// Runs `op` on a given tier: for tests.
///
/// # Panics
/// If the machine does not have it.
pub fn eval_on<O: SimdOp>(isa: Isa, op: O) -> O::Output {
    assert!(isa.is_available(), "this machine does not have {isa}");
    run(isa, op)
}

/// Instructions that only some machines of a tier have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// [`Simd::dot_bytes`]: AVX-VNNI and AVX512-VNNI.
    Bytes,
    /// [`Simd::dot_bf16`]: AVX512-BF16.
    Bf16,
    /// AMX, whose instructions kernels write out.
    Tiles,
}

impl Extra {
    /// Whether this machine has them on a tier.
    pub fn is_available(self, isa: Isa) -> bool {
        #[cfg(all(target_arch = "x86_64", feature = "std"))]
        return isa.is_available()
            && match (isa, self) {
                (Isa::Avx2, Self::Bytes) => std::is_x86_feature_detected!("avxvnni"),
                (Isa::Avx512 | Isa::Amx, Self::Bytes) => std::is_x86_feature_detected!("avx512vnni"),
                (Isa::Avx512 | Isa::Amx, Self::Bf16) => std::is_x86_feature_detected!("avx512bf16"),
                (Isa::Amx, Self::Tiles) => true,
                _ => false,
            };
        #[cfg(not(all(target_arch = "x86_64", feature = "std")))]
        {
            let _ = isa;
            false
        }
    }

    fn check(self, isa: Isa) {
        assert!(self.is_available(isa), "this machine does not have {self:?} on {isa}");
    }
}

/// As [`eval_on`], compiled for [`Extra::Bytes`] too.
///
/// # Panics
/// If the machine does not have them on the tier.
pub fn eval_bytes<O: SimdOp>(isa: Isa, op: O) -> O::Output {
    Extra::Bytes.check(isa);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: checked.
    return unsafe { if isa == Isa::Avx2 { avx2::run_bytes(op) } else { avx512::run_bytes(op) } };
    #[cfg(not(target_arch = "x86_64"))]
    {
        drop(op);
        unreachable!("no tier has them")
    }
}

/// As [`eval_on`], compiled for [`Extra::Bf16`] too.
///
/// # Panics
/// If the machine does not have them on the tier.
pub fn eval_bf16<O: SimdOp>(isa: Isa, op: O) -> O::Output {
    Extra::Bf16.check(isa);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: checked.
    return unsafe { avx512::run_bf16(op) };
    #[cfg(not(target_arch = "x86_64"))]
    {
        drop(op);
        unreachable!("no tier has them")
    }
}

/// As [`eval_on`], for kernels that write out the instructions of AMX: compiled for its tier alone.
///
/// # Panics
/// If the machine does not have them on the tier.
pub fn eval_tiles<O: SimdOp>(isa: Isa, op: O) -> O::Output {
    Extra::Tiles.check(isa);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: checked.
    return unsafe { avx512::run(op) };
    #[cfg(not(target_arch = "x86_64"))]
    {
        drop(op);
        unreachable!("no tier has them")
    }
}

/// Runs another kernel on a token's tier, as a function of its own: for what is rare inside a kernel.
#[inline]
pub fn again<S: Simd, O: SimdOp>(_: S, op: O) -> O::Output {
    // The token proves that the machine has the tier.
    run(S::ISA, op)
}

#[inline]
fn run<O: SimdOp>(isa: Isa, op: O) -> O::Output {
    match isa {
        Isa::Scalar => op.eval(scalar::Scalar::new()),
        Isa::Portable => op.eval(portable::Portable::new()),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every caller checked that, or was shown that, the machine has the tier.
        Isa::Avx2 => unsafe { avx2::run(op) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 | Isa::Amx => unsafe { avx512::run(op) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => op.eval(portable::Portable::new()),
    }
}

#[cfg(test)]
mod tests;
