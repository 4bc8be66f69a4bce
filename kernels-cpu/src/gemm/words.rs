//! What operands of a product hold: f32, or numbers of fewer bits, several to a 32-bit word. Words are kept where f32 are, and the loop
//! nest moves them without knowing what they are.

use super::{amx, tile};
use crate::isa::Isa;
use crate::simd::{Extra, Simd, SimdOp, eval_bf16, eval_bytes, eval_on, eval_tiles};

/// What the words of both operands hold, and with which instructions they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// An f32.
    F32,
    /// An f32 that is a bf16: where there are no quicker products of bf16.
    WideBf16,
    /// Two bf16, multiplied by AVX512-BF16.
    Bf16,
    /// Two bf16, multiplied by AMX.
    Bf16Tiles,
    /// Two levels as i16: where there are no products of bytes.
    I16,
    /// Four levels as bytes, those on the left 128 higher and unsigned, multiplied by AVX-VNNI or AVX512-VNNI.
    Bytes,
    /// The same, multiplied by AMX.
    ByteTiles,
}

impl Words {
    /// For products of bf16 on a tier.
    pub fn bf16(isa: Isa) -> Self {
        match isa {
            Isa::Amx => Self::Bf16Tiles,
            _ if Extra::Bf16.is_available(isa) && has_quick_bf16() => Self::Bf16,
            _ => Self::WideBf16,
        }
    }

    /// For products of int8 on a tier.
    pub fn int8(isa: Isa) -> Self {
        match isa {
            Isa::Amx => Self::ByteTiles,
            _ if Extra::Bytes.is_available(isa) => Self::Bytes,
            _ => Self::I16,
        }
    }

    /// Whether this machine can multiply them on a tier: more than what [`Words::bf16`] and [`Words::int8`] choose.
    #[cfg(test)]
    pub fn is_available(self, isa: Isa) -> bool {
        match self {
            Self::F32 | Self::WideBf16 | Self::I16 => isa.is_available(),
            Self::Bf16 => Extra::Bf16.is_available(isa),
            Self::Bytes => Extra::Bytes.is_available(isa),
            Self::Bf16Tiles | Self::ByteTiles => Extra::Tiles.is_available(isa),
        }
    }

    /// Numbers in a word.
    pub fn numbers(self) -> usize {
        match self {
            Self::F32 | Self::WideBf16 => 1,
            Self::Bf16 | Self::Bf16Tiles | Self::I16 => 2,
            Self::Bytes | Self::ByteTiles => 4,
        }
    }

    /// Words that `k` numbers take, the last ones filled up with zeros.
    pub fn count(self, k: usize) -> usize {
        k.div_ceil(self.numbers()).next_multiple_of(self.step())
    }

    /// Whether they are levels, whose sums are integers.
    pub const fn are_levels(self) -> bool {
        matches!(self, Self::I16 | Self::Bytes | Self::ByteTiles)
    }

    /// What is added to the levels of the left operand.
    pub fn zero_point(self) -> i32 {
        if matches!(self, Self::Bytes | Self::ByteTiles) { 128 } else { 0 }
    }

    /// Whether AMX multiplies them.
    pub const fn in_tiles(self) -> bool {
        matches!(self, Self::Bf16Tiles | Self::ByteTiles)
    }

    /// Words that are multiplied at a time.
    pub fn step(self) -> usize {
        if self.in_tiles() { 16 } else { 1 }
    }

    /// Rows and columns of the largest tile.
    pub fn tile(self, isa: Isa) -> (usize, usize) {
        if self.in_tiles() { amx::SIZE } else { tile::size(isa) }
    }

    /// Runs a kernel for these words.
    pub fn eval(self, isa: Isa, op: impl WordsOp) {
        match self {
            Self::F32 | Self::WideBf16 => eval_on(isa, For(F32, op)),
            Self::Bf16 => eval_bf16(isa, For(Bf16, op)),
            Self::Bf16Tiles => eval_tiles(isa, For(Bf16Tiles, op)),
            Self::I16 => eval_on(isa, For(I16, op)),
            Self::Bytes => eval_bytes(isa, For(Bytes, op)),
            Self::ByteTiles => eval_tiles(isa, For(ByteTiles, op)),
        }
    }
}

/// Whether AVX512-BF16 is quicker than f32: on AMD's processors twice as quick, on Intel's (Sapphire Rapids) half as quick. Asked once: in a virtual
/// machine the answer takes microseconds.
#[cfg(all(target_arch = "x86_64", feature = "std"))]
fn has_quick_bf16() -> bool {
    static QUICK: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let vendor = core::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Auth", *b"enti", *b"cAMD"]
    });
    *QUICK
}

#[cfg(not(all(target_arch = "x86_64", feature = "std")))]
fn has_quick_bf16() -> bool {
    false
}

/// A kernel written over any [`Simd`] and any [`Dot`].
pub(super) trait WordsOp {
    fn eval<S: Simd, D: Dot>(self, s: S, d: D);
}

struct For<D, O>(D, O);

impl<D: Dot, O: WordsOp> SimdOp for For<D, O> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        self.1.eval(s, self.0);
    }
}

/// How words are multiplied and summed up.
pub(super) trait Dot: Copy {
    /// What it is for.
    const WORDS: Words;
    /// Whether sums are i32, kept as f32 of the same bits.
    const LEVELS: bool = Self::WORDS.are_levels();
    /// Whether tiles are rounded to bf16 as they are written.
    const HALVES: bool = matches!(Self::WORDS, Words::Bf16 | Words::Bf16Tiles);
    /// Whether AMX does it.
    const TILES: bool = Self::WORDS.in_tiles();

    /// sum + a b
    ///
    /// # Safety
    /// In kernels that [`Words::eval`] runs for such words.
    unsafe fn add_product<S: Simd>(_s: S, _sum: S::F, _a: S::F, _b: S::F) -> S::F {
        unreachable!("AMX multiplies whole tiles")
    }

    /// The sum of two sums.
    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::F, b: S::F) -> S::F {
        if Self::LEVELS { s.as_float(s.add_i(s.bits(a), s.bits(b))) } else { s.add(a, b) }
    }
}

macro_rules! dots {
    ($($name:ident, |$s:ident, $sum:ident, $a:ident, $b:ident| $product:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl Dot for $name {
            const WORDS: Words = Words::$name;
            #[inline(always)]
            unsafe fn add_product<S: Simd>($s: S, $sum: S::F, $a: S::F, $b: S::F) -> S::F {
                $product
            }
        }
    )*};
}

dots! {
    F32, |s, sum, a, b| s.fma(a, b, sum);
    // SAFETY: the caller's promise.
    Bf16, |s, sum, a, b| unsafe { s.dot_bf16(sum, a, b) };
    I16, |s, sum, a, b| s.as_float(s.dot_i16(s.bits(sum), s.bits(a), s.bits(b)));
    // SAFETY: the caller's promise.
    Bytes, |s, sum, a, b| s.as_float(unsafe { s.dot_bytes(s.bits(sum), s.bits(a), s.bits(b)) });
}

#[derive(Clone, Copy)]
struct Bf16Tiles;
impl Dot for Bf16Tiles {
    const WORDS: Words = Words::Bf16Tiles;
}

#[derive(Clone, Copy)]
struct ByteTiles;
impl Dot for ByteTiles {
    const WORDS: Words = Words::ByteTiles;
}
