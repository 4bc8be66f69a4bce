//! Sixteen numbers at a time: AVX-512.

use core::arch::x86_64::*;

use super::{Simd, SimdOp};
use crate::isa::Isa;

/// Token of [`Isa::Avx512`].
#[derive(Clone, Copy)]
pub struct Avx512(());

/// The odd ones of 64 halves of words.
static ODD: [u16; 32] = {
    let mut odd = [0; 32];
    let mut k = 0;
    while k < 32 {
        odd[k] = 2 * k as u16 + 1;
        k += 1;
    }
    odd
};

/// Runs a kernel compiled for the tier.
///
/// # Safety
/// The machine must have it.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
pub(super) unsafe fn run<O: SimdOp>(op: O) -> O::Output {
    op.eval(Avx512(()))
}

/// As [`run`], with AVX512-VNNI.
///
/// # Safety
/// The machine must have both.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
pub(super) unsafe fn run_bytes<O: SimdOp>(op: O) -> O::Output {
    op.eval(Avx512(()))
}

/// As [`run`], with AVX512-BF16.
///
/// # Safety
/// The machine must have both.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
pub(super) unsafe fn run_bf16<O: SimdOp>(op: O) -> O::Output {
    op.eval(Avx512(()))
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ISA: Isa = Isa::Avx512;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m512 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, x: __m512, p: *mut f32) {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch reads nothing that the program sees, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const f32) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn scale(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }
    #[inline(always)]
    fn to_i32(self, a: __m512) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn as_float(self, a: __m512i) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32], fill: f32) -> __m512 {
        assert!(x.len() < 16);
        // SAFETY: the token; the mask leaves what is beyond the slice unread.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (1 << x.len()) - 1, x.as_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, x: __m512, out: &mut [f32]) {
        assert!(out.len() < 16);
        // SAFETY: the token; the mask leaves what is beyond the slice untouched.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), (1 << out.len()) - 1, x) }
    }
    #[inline(always)]
    fn upper_halves(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe {
            let odd = _mm512_loadu_si512(ODD.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castps_si512(a), odd, _mm512_castps_si512(b)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, x: *const f32, stride: isize, rows: usize, out: *mut f32, step: usize) {
        let row = |r: usize| x.wrapping_offset(r.min(rows - 1) as isize * stride);
        for quad in 0..4 {
            // SAFETY: the token, and the caller's promise.
            unsafe {
                // Lane l of vector i: four columns of row 4 l + i.
                let part = |r: usize| _mm_loadu_ps(row(r).add(4 * quad));
                let gather = |i: usize| {
                    let v = _mm512_castps128_ps512(part(i));
                    let v = _mm512_insertf32x4::<1>(v, part(4 + i));
                    let v = _mm512_insertf32x4::<2>(v, part(8 + i));
                    _mm512_insertf32x4::<3>(v, part(12 + i))
                };
                let [a, b, c, d] = [gather(0), gather(1), gather(2), gather(3)];
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                let pair = |a, b| (_mm512_castps_pd(a), _mm512_castps_pd(b));
                let low = |(a, b)| _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                let high = |(a, b)| _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                let columns =
                    [low(pair(ab, cd)), high(pair(ab, cd)), low(pair(ab_high, cd_high)), high(pair(ab_high, cd_high))];
                for (k, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(out.add((4 * quad + k) * step), column);
                }
            }
        }
    }
    #[inline(always)]
    fn dot_i16(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_dpbusd_epi32(sum, a, b) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise; both are sixteen lanes of bits.
        unsafe {
            let pairs = |x| core::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }
}
