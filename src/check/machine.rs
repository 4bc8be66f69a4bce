//! What this machine is: processor, what it can do, memory, the day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// A description of the machine for a record.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Operating system and architecture.
    pub system: String,
    /// The processor's name, where the system tells.
    pub processor: Option<String>,
    /// Those of its instruction sets that matter here.
    pub features: Vec<&'static str>,
    /// Threads that can run at once.
    pub cores: usize,
    /// Memory in MiB, where the system tells.
    pub memory_mib: Option<u64>,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let field = |file: &str, key: &str| -> Option<String> {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib = field("/proc/meminfo", "MemTotal");
        Self {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: field("/proc/cpuinfo", "model name"),
            features: features(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib / 1024),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => { [$(($name, std::is_x86_feature_detected!($name))),*] };
    }
    let all = detected!("sse2" "sse4.1" "avx" "avx2" "fma" "f16c" "avx512f" "avx512vl" "avx512bw" "avx512dq" "avx512vnni" "avx512bf16");
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// The day of a moment in UTC, as 2024-02-29 (Hinnant, chrono-compatible low-level date algorithms).
pub fn day(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Days since 0000-03-01, from which leap days are at the end of years.
    let days = since.as_secs() / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, more) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{date:02}", era * 400 + year + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_the_calendars() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_251_199, "2024-02-29"),
            (1_735_689_600, "2025-01-01"),
        ] {
            assert_eq!(day(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn this_machine_has_what_its_tiers_need() {
        let machine = Machine::this();
        assert!(machine.cores >= 1);
        let has_avx2 = kernels_cpu::Isa::Avx2.is_available();
        assert_eq!(has_avx2, ["avx2", "fma"].iter().all(|name| machine.features.contains(name)));
    }
}
