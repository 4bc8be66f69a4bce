//! Files that are whole or absent: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.exists()) {
        return Err(Error::new(format!("there is no folder {}; make it first", folder.display())).at(path));
    }
    let beside = beside(path);
    let attempt = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(&beside)?);
        write(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
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

/// A name in the same folder that no other process writes to.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
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
