//! Eight numbers at a time: AVX2 and FMA.

use core::arch::x86_64::*;

use super::{Simd, SimdOp};
use crate::isa::Isa;

/// Token of [`Isa::Avx2`].
#[derive(Clone, Copy)]
pub struct Avx2(());

/// Runs a kernel compiled for the tier.
///
/// # Safety
/// The machine must have it.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<O: SimdOp>(op: O) -> O::Output {
    op.eval(Avx2(()))
}

/// As [`run`], with AVX-VNNI.
///
/// # Safety
/// The machine must have both.
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) unsafe fn run_bytes<O: SimdOp>(op: O) -> O::Output {
    op.eval(Avx2(()))
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ISA: Isa = Isa::Avx2;
    type F = __m256;
    type I = __m256i;
    type M = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, x: __m256, p: *mut f32) {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_storeu_ps(p, x) }
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
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_blendv_ps(b, a, m) }
    }
    #[inline(always)]
    fn to_i32(self, a: __m256) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits(self, a: __m256) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    fn as_float(self, a: __m256i) -> __m256 {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    fn add_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32], fill: f32) -> __m256 {
        let mask = first(x.len());
        // SAFETY: the token; the mask leaves what is beyond the slice unread.
        unsafe {
            let read = _mm256_maskload_ps(x.as_ptr(), mask);
            _mm256_blendv_ps(_mm256_set1_ps(fill), read, _mm256_castsi256_ps(mask))
        }
    }
    #[inline(always)]
    fn store_partial(self, x: __m256, out: &mut [f32]) {
        // SAFETY: the token; the mask leaves what is beyond the slice untouched.
        unsafe { _mm256_maskstore_ps(out.as_mut_ptr(), first(out.len()), x) }
    }
    #[inline(always)]
    unsafe fn transpose(self, x: *const f32, stride: isize, rows: usize, out: *mut f32, step: usize) {
        let row = |r: usize| x.wrapping_offset(r.min(rows - 1) as isize * stride);
        for half in 0..2 {
            // SAFETY: the token, and the caller's promise.
            unsafe {
                // Lane l of vector i: four columns of row 4 l + i.
                let part = |r: usize| _mm_loadu_ps(row(r).add(4 * half));
                let gather = |i: usize| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(part(i)), part(4 + i));
                let [a, b, c, d] = [gather(0), gather(1), gather(2), gather(3)];
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                let pair = |a, b| (_mm256_castps_pd(a), _mm256_castps_pd(b));
                let low = |(a, b)| _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                let high = |(a, b)| _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                let columns =
                    [low(pair(ab, cd)), high(pair(ab, cd)), low(pair(ab_high, cd_high)), high(pair(ab_high, cd_high))];
                for (k, column) in columns.into_iter().enumerate() {
                    _mm256_storeu_ps(out.add((4 * half + k) * step), column);
                }
            }
        }
    }
    #[inline(always)]
    fn dot_i16(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves that the machine has the tier.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sum, a, b) }
    }
}

/// All bits set in the first `n` lanes, fewer than 8.
#[inline(always)]
fn first(n: usize) -> __m256i {
    const BITS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: eight numbers from position 8 - n (checked by the slice); AVX is below every caller's tier.
    unsafe { _mm256_loadu_si256(BITS[8 - n..][..8].as_ptr().cast()) }
}
