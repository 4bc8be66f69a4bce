//! The one error type for everything that comes from outside: files, tables, images, configs, devices.

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong with something from outside: where, what, and what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    path: Option<PathBuf>,
}

/// Who has to act; decides the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wrong flags or config keys: exit code 2.
    Usage,
    /// Everything else: exit code 1.
    Failure,
    /// Whoever read the results has gone, which ends the command: exit code 0.
    Unread,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure told in one line that names the place and the remedy.
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failure, message: message.into(), path: None }
    }

    /// A wrong flag or config key.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into(), path: None }
    }

    /// Whoever read the results has gone.
    pub fn unread() -> Self {
        Self { kind: Kind::Unread, message: "nobody reads the results".into(), path: None }
    }

    /// The same error, naming the file it is about (the innermost name stays).
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// The file that it is about.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Who has to act.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Attaches a path to any error on its way up.
pub trait At<T> {
    /// Names the file that the error is about.
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for std::result::Result<T, E> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| error.into().at(path))
    }
}
