//! Files that are whole or absent: written beside, synced, renamed.

use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{At, Error, Result};

/// What reading a file may take beside four times its size, less a little for what surrounds it: the bound of 16 MiB that fuzzing holds
/// readers to.
#[cfg(feature = "text")]
pub(crate) const ROOM: usize = 15 << 20;

/// Writes `bytes` to `path` so that no reader and no crash ever sees a part of them.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with a writer for what is too large to hold as one slice.
pub fn write_atomic_with(path: impl AsRef<Path>, write: impl FnOnce(&mut Pieces) -> std::io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        return Err(Error::new(format!("there is no folder {}; make it first", folder.display())).at(path));
    }
    let beside = beside(path);
    let attempt = || -> std::io::Result<()> {
        let mut file = Pieces { file: BufWriter::with_capacity(PIECE, File::create(&beside)?), written: 0 };
        write(&mut file)?;
        file.flush()?;
        file.file.get_ref().sync_all()?;
        fs::rename(&beside, path)?;
        // The rename itself is durable only once the folder is synced; not every platform can.
        if let Some(Ok(folder)) =
            path.parent().map(|p| File::open(if p.as_os_str().is_empty() { Path::new(".") } else { p }))
        {
            let _ = folder.sync_all();
        }
        Ok(())
    };
    attempt()
        .inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })
        .at(path)
}

/// Bytes that are written at once, each time from a multiple of them on: a file system that can then keeps them in one page of memory, which is
/// mapped at once (ext4 and xfs of Linux; of a file in pages of 4 KiB, mapping takes about 0.1 ms for each MB).
const PIECE: usize = 2 << 20;

/// A file that is written in pieces.
pub struct Pieces {
    file: BufWriter<File>,
    written: usize,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let some = bytes.len().min(PIECE - self.written % PIECE);
        self.file.write_all(&bytes[..some])?;
        self.written += some;
        Ok(some)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// What the system says of a file that another file, or the same after a change, does not share: the time of its last change, which is the system's
/// own, counts every write, rename and copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    length: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None`: this system does not say.
    #[cfg(unix)]
    pub fn of(found: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        Some(Self {
            length: found.len(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// `None`: this system does not say.
    #[cfg(not(unix))]
    pub fn of(_: &Metadata) -> Option<Self> {
        None
    }

    /// When the file was last changed.
    pub fn changed(&self) -> SystemTime {
        let (seconds, nanos) = self.changed;
        SystemTime::UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanos.clamp(0, 999_999_999) as u32)
    }
}

/// Whether what is made again where it is missing may be kept: unless `TIER_NO_CACHE` is set.
pub fn may_cache() -> bool {
    std::env::var_os("TIER_NO_CACHE").is_none()
}

/// The folder for it: `$XDG_CACHE_HOME/tiergrad` or `~/.cache/tiergrad`; none where neither is set.
pub fn caches() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    Some(absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?.join("tiergrad"))
}

/// Removes what killed processes left half written in a folder that nobody else writes to.
pub fn remove_parts(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(".part") {
            fs::remove_file(&path).at(&path)?;
        }
    }
    Ok(())
}

/// A name in the same folder that nobody else writes to.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{}.part", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomic(&path, b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"half of the thi")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("a.bin: disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(beside(&path), b"half").unwrap();
        remove_parts(folder.path()).unwrap();
        assert_eq!((fs::read_dir(folder.path()).unwrap().count(), fs::read(&path).unwrap()), (1, b"second".to_vec()));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomic("/nonexistent-folder/x.bin", b"").unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent-folder/x.bin: "));
    }
}
