//! Memory of this process as the system counts it, and the most that it may have. Only Linux is asked.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Notes the time, once: the program starts.
pub fn start() {
    STARTED.get_or_init(Instant::now);
}

/// How long ago it did. `None`: nobody noted that.
pub fn since_start() -> Option<Duration> {
    STARTED.get().map(Instant::elapsed)
}

/// Bytes of memory that this process has now (VmRSS).
pub fn resident() -> Option<u64> {
    kib("/proc/self/status", "VmRSS:")
}

/// Most bytes that it had at once (VmHWM).
pub fn most_resident() -> Option<u64> {
    kib("/proc/self/status", "VmHWM:")
}

/// The most that this process may have in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bytes.
    pub bytes: u64,
    /// What sets it, in words.
    pub by: String,
}

/// The nearest limit: free memory of the machine, of the control groups that it is in, of its address space (ulimit -v).
pub fn limit() -> Option<Limit> {
    let own = resident()?;
    let machine = kib("/proc/meminfo", "MemAvailable:")
        .map(|free| Limit { bytes: free + own, by: "this machine has free".to_owned() });
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = of_groups(&groups, Path::new("/sys/fs/cgroup"), own);
    [machine, group, of_address_space(own)].into_iter().flatten().min_by_key(|limit| limit.bytes)
}

/// A number of KiB behind a key, in bytes.
fn kib(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What `ulimit -v` leaves: addresses that are not memory count too.
fn of_address_space(own: u64) -> Option<Limit> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let most: u64 = line.split_whitespace().next()?.parse().ok()?;
    let addresses = kib("/proc/self/status", "VmSize:")?;
    Some(Limit { bytes: most.saturating_sub(addresses.saturating_sub(own)), by: "`ulimit -v` allows".to_owned() })
}

/// The nearest limit of the control groups (version 2, and the memory controller of version 1) that /proc/self/cgroup names, and of those
/// around them. What others in a group have counts, but for files that can be read again.
fn of_groups(groups: &str, root: &Path, own: u64) -> Option<Limit> {
    let named = |line: &str| -> Option<(PathBuf, PathBuf, [&'static str; 2])> {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (root, files) = match (number, controllers) {
            ("0", "") => (root.to_path_buf(), ["memory.max", "memory.current"]),
            (_, "memory") => (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
            _ => return None,
        };
        Some((root.join(path.trim_start_matches('/')), root, files))
    };
    let number = |file: PathBuf| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let mut found: Vec<u64> = Vec::new();
    for (folder, root, [most, current]) in groups.lines().filter_map(named) {
        // Inside of a container the path may be that of its outside; its root is then the group itself.
        for at in folder.ancestors().take_while(|at| at.starts_with(&root)) {
            let (Some(most), Some(current)) = (number(at.join(most)), number(at.join(current))) else { continue };
            let stat = std::fs::read_to_string(at.join("memory.stat")).unwrap_or_default();
            let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
            found.push(most.saturating_sub(current.saturating_sub(own).saturating_sub(files)));
        }
    }
    let bytes = found.into_iter().min()?;
    Some(Limit { bytes, by: "this container (control group) has free".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_control_group_limits() {
        let root = tempfile::tempdir().unwrap();
        let group = |name: &str, files: [(&str, &str); 3]| {
            let folder = root.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(file, text)| std::fs::write(folder.join(file), text).unwrap());
        };
        group("a/b", [("memory.max", "max\n"), ("memory.current", "9\n"), ("memory.stat", "")]);
        group(
            "a",
            [("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 1\ninactive_file 150\n")],
        );
        // Others have 700 - 50, of which 150 can go.
        let limit = |groups: &str| of_groups(groups, root.path(), 50).map(|limit| limit.bytes);
        assert_eq!(limit("0::/a/b\n"), Some(500));
        assert_eq!(limit("0::/else/where\n1:cpu:/a\n"), None);
        let files = [("memory.limit_in_bytes", "400"), ("memory.usage_in_bytes", "60"), ("memory.stat", "")];
        group("memory/c", files);
        assert_eq!(limit("9:memory:/c\n0::/a/b\n"), Some(390));
        if cfg!(target_os = "linux") {
            let (now, most) = (resident().unwrap(), most_resident().unwrap());
            assert!(now > 1 << 20 && most >= now / 2 && super::limit().unwrap().bytes > 1 << 20);
        }
    }
}
