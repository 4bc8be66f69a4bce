//! Which instruction set the kernels run on: chosen once, at run time.

use core::fmt;

#[cfg(feature = "std")]
std::thread_local! {
    /// What the pool that the thread belongs to was made for.
    static OF_THREAD: core::cell::Cell<Option<Isa>> = const { core::cell::Cell::new(None) };
}

/// A tier of kernels, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust: the definition's speed, for tests and for tools that know no SIMD.
    Scalar,
    /// The `wide` crate: SSE2, NEON or wasm128, whatever the build target has.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// AVX-512 and AMX's tiles for products of bf16 and of int8.
    Amx,
}

impl Isa {
    /// Every tier, lowest first.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// The name that `TIER_ISA` knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Whether this machine can run the tier.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Portable => true,
            Self::Avx2 => has_avx2(),
            Self::Avx512 => has_avx512(),
            Self::Amx => has_avx512() && has_amx(),
        }
    }

    /// The tiers that this machine can run, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The best tier.
    fn best() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    /// The tier in use: that of the thread's pool where it was made for one, else the best one, or the lower one that the environment
    /// variable `TIER_ISA` names.
    #[cfg(feature = "std")]
    pub fn current() -> Self {
        static CURRENT: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        OF_THREAD.get().unwrap_or_else(|| *CURRENT.get_or_init(|| Self::requested().unwrap_or_else(|_| Self::best())))
    }

    /// Holds the calling thread to this tier.
    ///
    /// # Panics
    /// If the machine does not have it.
    #[cfg(feature = "rayon")]
    pub(crate) fn hold(self) {
        assert!(self.is_available(), "this machine does not have {self}");
        OF_THREAD.set(Some(self));
    }

    /// What `TIER_ISA` asks for; an error in words where it cannot be had. Programs check this at start.
    #[cfg(feature = "std")]
    pub fn requested() -> Result<Self, std::string::String> {
        match std::env::var("TIER_ISA") {
            Err(_) => Ok(Self::best()),
            Ok(name) => match Self::ALL.into_iter().find(|isa| isa.name() == name) {
                Some(isa) if isa.is_available() => Ok(isa),
                Some(isa) => {
                    Err(std::format!("TIER_ISA={isa}: this machine does not have it; its best is {}", Self::best()))
                }
                None => Err(std::format!("TIER_ISA={name}: not one of scalar, portable, avx2, avx512, amx")),
            },
        }
    }

    /// The tier in use, from the build target alone.
    #[cfg(not(feature = "std"))]
    pub fn current() -> Self {
        Self::best()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(all(target_arch = "x86_64", feature = "std"))]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

#[cfg(all(target_arch = "x86_64", feature = "std"))]
fn has_avx512() -> bool {
    has_avx2()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
}

#[cfg(not(all(target_arch = "x86_64", feature = "std")))]
fn has_avx2() -> bool {
    cfg!(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma"))
}

#[cfg(not(all(target_arch = "x86_64", feature = "std")))]
fn has_avx512() -> bool {
    has_avx2()
        && cfg!(all(
            target_feature = "avx512f",
            target_feature = "avx512vl",
            target_feature = "avx512bw",
            target_feature = "avx512dq"
        ))
}

/// Whether the machine has tiles of bf16 and int8, and the system gives them to this process.
#[cfg(all(target_arch = "x86_64", target_os = "linux", feature = "std"))]
fn has_amx() -> bool {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    /// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7.
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    static GRANTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *GRANTED.get_or_init(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES == TILES && ask_for_tiles())
}

/// Linux gives a process the state of tiles (8 KiB for each thread that uses it) when it asks: Documentation/arch/x86/xstate.rst.
#[cfg(all(target_arch = "x86_64", target_os = "linux", feature = "std"))]
fn ask_for_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: the call changes no memory of the process; the instruction overwrites rcx and r11.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", feature = "std")))]
fn has_amx() -> bool {
    false
}
