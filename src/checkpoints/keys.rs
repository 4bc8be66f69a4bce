//! The config files of other programs, read key by key: each complaint names the file and the key.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{At, Error, Result};
use crate::nn::Activation;

/// A JSON object, or nothing where there is no such file or part; a key that is null counts as absent.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    path: PathBuf,
    at: String,
    value: Value,
}

impl Keys {
    /// Reads a file; nothing if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read or is no JSON object.
    pub fn open(path: &Path) -> Result<Self> {
        let mut keys = Self { path: path.to_path_buf(), at: String::new(), value: Value::Null };
        if path.is_file() {
            let bytes = std::fs::read(path).at(path)?;
            keys.value = serde_json::from_slice(&bytes).map_err(|e| Error::new(format!("not JSON: {e}"))).at(path)?;
            if !keys.value.is_object() {
                return Err(Error::new("not a JSON object").at(path));
            }
        }
        Ok(keys)
    }

    /// Whether there is anything.
    pub fn is_some(&self) -> bool {
        !self.value.is_null()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything, for readers of their own.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The object under a key; nothing where there is none.
    pub fn part(&self, key: &str) -> Self {
        Self { path: self.path.clone(), at: self.name(key), value: self.value.get(key).cloned().unwrap_or_default() }
    }

    /// These keys with another object's over them.
    pub fn overlaid(mut self, other: &Self) -> Self {
        if let (Value::Object(mine), Value::Object(theirs)) = (&mut self.value, &other.value) {
            mine.extend(theirs.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
        }
        self
    }

    fn name(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// A complaint about a key.
    pub fn wrong(&self, key: &str, why: &str) -> Error {
        let value = self.get(key).map_or_else(String::new, |value| format!(" is {value}"));
        Error::new(format!("{}{value}: {why}", self.name(key))).at(&self.path)
    }

    /// A whole number.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        self.get(key).map(|value| number(value).ok_or_else(|| self.wrong(key, "not a whole number"))).transpose()
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "not a number"))).transpose()
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, "not a text"))).transpose()
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "not true or false"))).transpose()
    }

    /// Numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let all = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        self.get(key).map(|value| all(value).ok_or_else(|| self.wrong(key, "not a list of numbers"))).transpose()
    }

    /// The activation under a key, by Hugging Face's names.
    pub fn activation(&self, key: &str) -> Result<Option<Activation>> {
        let known = |name| Activation::of(name).ok_or_else(|| self.wrong(key, "not an activation that is known here"));
        self.text(key)?.map(known).transpose()
    }

    /// What the tensors say must be what the key says, where it is there.
    ///
    /// # Errors
    /// If they differ.
    pub fn agree(&self, pairs: &[(&str, usize)]) -> Result<()> {
        for &(key, found) in pairs {
            if self.count(key)?.is_some_and(|said| said != found) {
                return Err(self
                    .wrong(key, &format!("the tensors have {found}; config and weights belong to different models")));
            }
        }
        Ok(())
    }

    /// A key that must be absent or have one of these values, as JSON.
    ///
    /// # Errors
    /// If it has another, which is not supported here.
    pub fn only(&self, key: &str, values: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(value) if !values.contains(value) => Err(self.wrong(key, "not supported here")),
            _ => Ok(()),
        }
    }
}
