//! A file's bytes: mapped, or copied into memory.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use memmap2::{Mmap, MmapMut};

use crate::error::{At, Error, Result};
use crate::files::Stamp;
use crate::{memory, mount};

/// A file's bytes: mapped read-only, or copied into memory when it was opened.
///
/// A mapping is a view of the file. While it is alive nobody may truncate or rewrite the file in place: touching a page that is no longer
/// there ends the process, and no program can prevent that on its own. Replacing a file by renaming another one over it, as everything
/// here does, is safe: the mapping keeps the old bytes. [`FileBytes::intact`] is asked before the bytes are used, so that
/// a file that was cut or written to is an error in words, but for what happens between the question and the use. A file that can
/// go away by itself ([`mount::fleeting`]) is copied; of a copy all this is no concern.
pub struct FileBytes {
    held: Held,
    path: PathBuf,
    file: Mutex<File>,
    /// When it was opened.
    opened: SystemTime,
    /// What the system said of it then.
    found: Option<Metadata>,
}

enum Held {
    Mapped(Mmap),
    /// In anonymous memory, for this reason.
    Copied(Mmap, String),
}

impl FileBytes {
    /// A whole file, with `map` mapped where it lies on a disk of this machine, else copied.
    ///
    /// # Errors
    /// If it cannot be opened, mapped or read.
    pub fn open(path: impl AsRef<Path>, map: bool) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let mut file = File::open(path).at(path)?;
        let why = if map { mount::fleeting(&file) } else { Some("as --no-mmap says".to_owned()) };
        match why {
            None => Self::mapped(path, file),
            Some(why) => {
                let held = Held::Copied(copied(&mut file).at(path)?, why);
                Ok(Self::new(path, file, held))
            }
        }
    }

    /// A whole file, mapped, where it is one and lies on a disk of this machine.
    ///
    /// # Errors
    /// If it cannot be opened or mapped.
    pub fn open_mapped(path: &Path) -> Result<Option<Arc<Self>>> {
        // Opening a pipe would wait for its writer.
        if !path.is_file() {
            return Ok(None);
        }
        let file = File::open(path).at(path)?;
        if mount::fleeting(&file).is_some() { Ok(None) } else { Self::mapped(path, file).map(Some) }
    }

    fn mapped(path: &Path, file: File) -> Result<Arc<Self>> {
        // SAFETY: read-only, and the contract above (no truncation in place) is documented to users.
        let held = Held::Mapped(unsafe { Mmap::map(&file) }.at(path)?);
        Ok(Self::new(path, file, held))
    }

    fn new(path: &Path, file: File, held: Held) -> Arc<Self> {
        let found = file.metadata().ok();
        Arc::new(Self { held, path: path.to_path_buf(), file: Mutex::new(file), opened: SystemTime::now(), found })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file was when it was opened. `None`: the system does not say.
    pub fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.found.as_ref()?)
    }

    /// What it is now.
    pub fn stamp_now(&self) -> Option<Stamp> {
        Stamp::of(&self.file.lock().unwrap_or_else(|e| e.into_inner()).metadata().ok()?)
    }

    /// Whether it was last changed so long before it was opened.
    pub fn was_settled(&self, before: Duration) -> bool {
        let changed = self.stamp().map(|stamp| stamp.changed());
        changed.and_then(|changed| self.opened.duration_since(changed).ok()).is_some_and(|since| since >= before)
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Mapped(map) | Held::Copied(map, _) => map,
        }
    }

    /// Some of them.
    ///
    /// # Errors
    /// If they are not inside the file.
    pub(super) fn part(&self, start: usize, len: usize) -> Result<&[u8]> {
        let end = start.checked_add(len);
        end.and_then(|end| self.bytes().get(start..end)).ok_or_else(|| {
            let size = self.bytes().len();
            Error::new(format!("bytes {start}..{start}+{len} are not inside the file of {size} bytes"))
        })
    }

    /// Reads from `start` on past a mapping.
    ///
    /// # Errors
    /// If the file was cut or written to, or cannot be read.
    pub(crate) fn read(&self, start: usize, out: &mut [u8]) -> Result<()> {
        self.intact()?;
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(start as u64)).and_then(|_| file.read_exact(out)).at(&self.path)
    }

    /// Whether the bytes are those of the file itself, not a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(self.held, Held::Mapped(_))
    }

    /// How the bytes are held, and why so, in words.
    pub fn describe(&self) -> String {
        match &self.held {
            Held::Mapped(_) => "mapped".to_owned(),
            Held::Copied(_, why) => format!("copied into memory ({why})"),
        }
    }

    /// Whether the bytes are still those that were opened; to be asked before a mapping is used. One call of the system.
    ///
    /// # Errors
    /// If the file is mapped and was cut or written to.
    pub fn intact(&self) -> Result<()> {
        let Held::Mapped(map) = &self.held else { return Ok(()) };
        let now = self.file.lock().unwrap_or_else(|e| e.into_inner()).metadata().at(&self.path)?;
        let what = match now.len() {
            len if len < map.len() as u64 => format!("was cut from {} to {len} bytes", map.len()),
            _ if now.modified().ok() != self.found.as_ref().and_then(|found| found.modified().ok()) => {
                "was written to".to_owned()
            }
            _ => return Ok(()),
        };
        Err(Error::new(format!(
            "{what} while it was in use; start again, and replace a model by renaming a new file over the old one (or give --no-mmap, \
             which copies it first)"
        ))
        .at(&self.path))
    }

    /// Tells the system that the pages of these bytes will be read soon, so that it fetches many such places at once.
    pub fn soon(&self, start: usize, len: usize) {
        #[cfg(unix)]
        if let (Held::Mapped(map), Ok(_)) = (&self.held, self.part(start, len)) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, start, len);
        }
    }

    /// Tells the system that all will be read: of a disk, in the largest pages that it has.
    pub fn in_order(&self) {
        #[cfg(target_os = "linux")]
        if let Held::Mapped(map) = &self.held {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
    }

    /// Runs `read` telling the system that it reads a few bytes here and there: it then fetches those alone from the disk.
    pub fn scattered<T>(&self, read: impl FnOnce() -> T) -> T {
        // Advice only: nothing depends on it being taken.
        #[cfg(unix)]
        let advise = |advice| match &self.held {
            Held::Mapped(map) => drop(map.advise(advice)),
            Held::Copied(..) => {}
        };
        #[cfg(unix)]
        advise(memmap2::Advice::Random);
        let out = read();
        #[cfg(unix)]
        advise(memmap2::Advice::Normal);
        out
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.path.display(), self.describe())
    }
}

/// All bytes of a file in anonymous memory, which begins where a page does, as a mapping would.
fn copied(file: &mut File) -> Result<Mmap> {
    let len = file.metadata()?.len();
    memory::room(len, "a copy of this file")?;
    let len = usize::try_from(len).map_err(std::io::Error::other)?;
    let mut bytes = MmapMut::map_anon(len)?;
    file.read_exact(&mut bytes[..len])?;
    Ok(bytes.make_read_only()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;

    #[test]
    fn parts_of_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, [0, 0, 128, 63, 7]).unwrap();
        for map in [true, false] {
            let file = FileBytes::open(&path, map).unwrap();
            let part = Buffer::in_file(&file, 0, 4, 4).unwrap();
            assert_eq!(part.get::<f32>(), [1.0]);
            assert!(part.is_mapped() == file.is_mapped() && part.clone().get_mut::<f32>().is_none());
            let read = Buffer::read(&file, 1, 4).unwrap();
            assert!(read.bytes() == [0, 128, 63, 7] && !read.is_mapped());
            assert!(Buffer::read(&file, 3, 4).is_err() && Buffer::read(&file, usize::MAX, 4).is_err());
            assert!(Buffer::in_file(&file, 2, 4, 4).is_err());
            assert!(Buffer::in_file(&file, 1, 4, 4).is_err());
            assert!(Buffer::in_file(&file, usize::MAX, 4, 1).is_err());
        }
        assert!(FileBytes::open(folder.path().join("none"), true).err().unwrap().to_string().contains("none"));
    }

    #[test]
    fn what_happens_to_a_file_in_use_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        let fresh = |map: bool| {
            std::fs::write(&path, [7; 9000]).unwrap();
            FileBytes::open(&path, map).unwrap()
        };
        let cut = || File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
        let file = fresh(true);
        file.intact().unwrap();
        if file.is_mapped() {
            cut();
            let error = file.intact().unwrap_err().to_string();
            assert!(error.contains("x.bin: was cut from 9000 to 5 bytes while it was in use"), "{error}");
            assert!(Buffer::read(&file, 0, 9000).is_err());
            // Written over in place; the clock that files are stamped with is coarse.
            let file = fresh(true);
            File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            assert!(file.intact().unwrap_err().to_string().contains("was written to while it was in use"));
        }
        // A copy does not care, and what is renamed over a mapping leaves it its bytes.
        let file = fresh(false);
        cut();
        file.intact().unwrap();
        assert!(file.bytes() == [7; 9000] && !file.is_mapped() && file.describe().contains("--no-mmap"));
        let file = fresh(true);
        let other = folder.path().join("y.bin");
        std::fs::write(&other, [8; 5]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        file.intact().unwrap();
        assert!(file.bytes() == [7; 9000]);
    }
}
