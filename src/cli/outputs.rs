//! Outputs that would take the place of something that the command reads, or of each other.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Refuses an output that is an input, a file of a folder that is one (a model's), or another output.
pub(super) fn apart<'a>(
    outputs: impl IntoIterator<Item = &'a Path>,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    let refuse = |out: &Path, what: &str| Err(Error::usage(format!("{what}; name another file")).at(out));
    let outputs: Vec<(&Path, PathBuf)> = outputs.into_iter().map(|out| (out, place(out))).collect();
    for input in inputs {
        let read = place(input);
        for (out, place) in &outputs {
            if *place == read {
                return refuse(out, "this would replace what is read");
            }
            if place.exists() && place.parent() == Some(&read) {
                return refuse(out, &format!("this would replace a file of {}, which is read", input.display()));
            }
        }
    }
    for (i, (out, place)) in outputs.iter().enumerate() {
        if outputs[..i].iter().any(|(_, earlier)| earlier == place) {
            return refuse(out, "this is written twice");
        }
    }
    Ok(())
}

/// Where a file is, through links; one that is not there yet, in its folder.
fn place(path: &Path) -> PathBuf {
    let there = |path: &Path| std::fs::canonicalize(path).ok();
    let (folder, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    there(path).or_else(|| Some(there(folder)?.join(name))).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a.png", "model/weights"] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
        }
        let (picture, model) = (at("a.png"), at("model"));
        let check = |outputs: &[&str]| {
            let outputs: Vec<PathBuf> = outputs.iter().map(|name| at(name)).collect();
            apart(outputs.iter().map(PathBuf::as_path), [picture.as_path(), &model])
        };
        check(&["b.png", "c.json", "model/new", "no folder/a.png"]).unwrap();
        for (outputs, words) in [
            (["b.png", "a.png"], "a.png: this would replace what is read"),
            (["b.png", "model/../a.png"], "what is read"),
            (["b.png", "model/weights"], "a file of"),
            (["b.png", "b.png"], "written twice"),
            (["b.png", "./b.png"], "written twice"),
        ] {
            let error = check(&outputs).unwrap_err().to_string();
            assert!(error.contains(words), "{outputs:?}: {error}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&picture, at("link.png")).unwrap();
            assert!(check(&["link.png"]).is_err());
        }
    }
}
