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
}

impl Isa {
    /// Every tier, lowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Portable, Self::Avx2, Self::Avx512];

    /// The name that `TIER_ISA` knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this machine can run the tier.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Portable => true,
            Self::Avx2 => has_avx2(),
            Self::Avx512 => has_avx512(),
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
                None => Err(std::format!("TIER_ISA={name}: not one of scalar, portable, avx2, avx512")),
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
