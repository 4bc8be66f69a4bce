//! Where a file lies: whether its bytes can go away while the program looks at them.

use std::fs::File;

/// Why a file is better copied than mapped, in words: it lies on a network file system, in user space, or on a disk that can be pulled
/// out, where a page that cannot be fetched ends the process. `None`: it lies on a disk of this machine, or the system does not say
/// (only Linux is asked).
pub fn fleeting(file: &File) -> Option<String> {
    #[cfg(target_os = "linux")]
    return linux::fleeting(file);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    /// Magic numbers of statfs(2), from linux/magic.h and the file systems' own sources, of those whose bytes are elsewhere.
    const ELSEWHERE: [(u64, &str); 18] = [
        (0x6969, "nfs"),
        (0x517b, "smb"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x6573_5546, "fuse"),
        (0x0102_1997, "9p"),
        (0x564c, "ncp"),
        (0x7375_7245, "coda"),
        (0x5346_414f, "afs"),
        (0x6b41_4653, "afs"),
        (0x00c3_6400, "ceph"),
        (0x7461_636f, "ocfs2"),
        (0x0116_1970, "gfs2"),
        (0x0bd0_0bd0, "lustre"),
        (0x4750_4653, "gpfs"),
        (0x1983_0326, "beegfs"),
        (0x786f_4256, "vboxsf"),
        (0xaad7_aaea, "panfs"),
    ];

    pub fn fleeting(file: &File) -> Option<String> {
        if let Some(name) = rustix::fs::fstatfs(file).ok().and_then(|found| elsewhere(found.f_type as u64)) {
            return Some(format!("on {name}, whose files can go away"));
        }
        let device = file.metadata().ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        removable(&std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?)
            .then(|| "on a removable disk".to_owned())
    }

    /// The name of a file system whose bytes are elsewhere; the kernel's magic numbers have 32 bits.
    pub fn elsewhere(magic: u64) -> Option<&'static str> {
        ELSEWHERE.iter().find(|(known, _)| *known == magic & 0xffff_ffff).map(|(_, name)| *name)
    }

    /// Whether a block device, or the disk that it is a part of, can be pulled out: it says so, or hangs on USB.
    pub fn removable(device: &Path) -> bool {
        let says =
            |folder: &Path| std::fs::read_to_string(folder.join("removable")).is_ok_and(|text| text.trim() == "1");
        let usb = device.components().any(|part| part.as_os_str().to_str().is_some_and(|name| name.starts_with("usb")));
        usb || says(device) || device.parent().is_some_and(says)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn network_file_systems_and_removable_disks_are_known() {
            assert_eq!((elsewhere(0x6969), elsewhere(0xef53), elsewhere(0x0102_1994)), (Some("nfs"), None, None));
            // statfs gives a signed word on some machines.
            assert_eq!(elsewhere(0xff53_4d42_u32 as i32 as i64 as u64), Some("cifs"));
            let folder = tempfile::tempdir().unwrap();
            let disk = |name: &str, says: &str| {
                let part = folder.path().join(name).join("part1");
                std::fs::create_dir_all(&part).unwrap();
                std::fs::write(folder.path().join(name).join("removable"), says).unwrap();
                part
            };
            assert!(removable(&disk("sdb", "1\n")) && !removable(&disk("sda", "0\n")));
            assert!(removable(&disk("usb2/sdc", "0\n")) && removable(disk("sdd", "1").parent().unwrap()));
        }
    }
}
