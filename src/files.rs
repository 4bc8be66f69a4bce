//! Files that are whole or absent: written beside, synced, renamed.

use std::fs::{self, File, Metadata, OpenOptions};
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

/// As [`write_atomic`], with a writer for what is too large to hold as one slice. A link stays, and what it leads to is written; what is no file, such as
/// a pipe, is written to as it is.
pub fn write_atomic_with(path: impl AsRef<Path>, write: impl FnOnce(&mut Pieces) -> std::io::Result<()>) -> Result<()> {
    let named = path.as_ref();
    let path = &followed(named);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        return Err(Error::new(format!("there is no folder {}; make it first", folder.display())).at(named));
    }
    match fs::metadata(path).map(|found| found.file_type()) {
        Ok(kind) if kind.is_dir() => Err(Error::new("is a folder, where a file is to be written").at(named)),
        Ok(kind) if !kind.is_file() => {
            let mut file = Pieces::new(OpenOptions::new().write(true).open(path).at(named)?);
            write(&mut file).and_then(|()| file.flush()).at(named)
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(named),
        _ => replace(path, write).at(named),
    }
}

/// Writes a file beside, then renames it.
fn replace(path: &Path, write: impl FnOnce(&mut Pieces) -> std::io::Result<()>) -> std::io::Result<()> {
    let beside = beside(path);
    let attempt = || {
        let mut file = Pieces::new(File::create(&beside)?);
        write(&mut file)?;
        file.flush()?;
        file.file.get_ref().sync_all()?;
        fs::rename(&beside, path)?;
        sync(path.parent().unwrap_or(path));
        Ok(())
    };
    attempt().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Bytes that are written at once, each time from a multiple of them on: a file system that can then keeps them in one page of memory, which is
/// mapped at once (ext4 and xfs of Linux; of a file in pages of 4 KiB, mapping takes about 0.1 ms for each MB).
const PIECE: usize = 2 << 20;

/// A file that is written in pieces.
pub struct Pieces {
    file: BufWriter<File>,
    written: usize,
}

impl Pieces {
    fn new(file: File) -> Self {
        Self { file: BufWriter::with_capacity(PIECE, file), written: 0 }
    }
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
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.at(&path)?;
        }
    }
    Ok(())
}

/// A folder inside of another, in which files are made that take the place of others together.
pub struct Staging {
    /// Where they are made.
    pub path: PathBuf,
    /// Whether the outer one was not there.
    made: bool,
}

impl Staging {
    /// Makes both.
    pub fn new(folder: &Path) -> Result<Self> {
        let (path, made) = (beside(&folder.join("staged")), !folder.exists());
        fs::create_dir_all(&path).at(folder)?;
        Ok(Self { path, made })
    }

    /// Moves the files that were made to the outer folder, which loses those of these names that it has, the first one first, and gets it last.
    pub fn replace(self, names: &[&str]) -> Result<()> {
        let folder = self.path.parent().unwrap_or(&self.path);
        for path in names.iter().map(|name| folder.join(name)).filter(|path| path.exists()) {
            fs::remove_file(&path).at(&path)?;
        }
        for name in names.iter().rev() {
            let (made, path) = (self.path.join(name), folder.join(name));
            if made.exists() {
                fs::rename(made, &path).at(&path)?;
            }
        }
        sync(folder);
        Ok(())
    }
}

impl Drop for Staging {
    /// Leaves nothing behind, of a failure either.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        if self.made {
            // Fails where files are.
            let _ = self.path.parent().map(fs::remove_dir);
        }
    }
}

/// A rename itself is durable only once its folder is synced; not every platform can.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }) {
        let _ = folder.sync_all();
    }
}

/// Where a file is that is named by links, or would be.
fn followed(path: &Path) -> PathBuf {
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().map_or(link.clone(), |folder| folder.join(link));
    }
    path
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

    #[cfg(unix)]
    #[test]
    fn links_stay_and_pipes_are_written_to() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        symlink("elsewhere/file", at("near")).unwrap();
        symlink(at("near"), at("link")).unwrap();
        // There is no file yet, then there is one.
        for bytes in [b"first", b"after"] {
            write_atomic(at("link"), bytes).unwrap();
            assert_eq!(fs::read(at("elsewhere/file")).unwrap(), bytes);
        }
        assert!(["link", "near"].iter().all(|name| at(name).is_symlink()));
        symlink(at("round"), at("round")).unwrap();
        assert!(write_atomic(at("round"), b"").is_err());
        assert!(write_atomic(at("elsewhere"), b"").unwrap_err().to_string().contains("is a folder"));

        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = at("pipe");
            move || fs::read(pipe).unwrap()
        });
        write_atomic(at("pipe"), b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
    }

    #[test]
    fn staged_files_come_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let written = |names: &[&str]| {
            let staging = Staging::new(&out).unwrap();
            names.iter().for_each(|name| write_atomic(staging.path.join(name), name.as_bytes()).unwrap());
            staging
        };
        drop(written(&["a"]));
        assert!(!out.exists());
        written(&["a", "b"]).replace(&["a", "b", "c"]).unwrap();
        fs::write(out.join("own"), "").unwrap();
        let names = || {
            let mut names: Vec<String> =
                fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["a", "b", "own"]);
        // One that failed, one that was killed, and one that is of fewer files.
        drop(written(&["a"]));
        std::mem::forget(written(&["c"]));
        remove_parts(&out).unwrap();
        assert_eq!(names(), ["a", "b", "own"]);
        written(&["a"]).replace(&["a", "b", "c"]).unwrap();
        assert_eq!(names(), ["a", "own"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomic("/nonexistent-folder/x.bin", b"").unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent-folder/x.bin: "));
    }
}
