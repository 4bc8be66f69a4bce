//! Files of torch.save, read without Python and without executing anything.
//!
//! A pickle is a program for a small stack machine. [`pickle`] runs the part of it that builds numbers, texts, lists and dicts, in
//! bounded memory; [`calls`] is the list of the callables that tensors need, each of which becomes a plain description of a
//! tensor. Anything else that the pickle calls is remembered by name and never run. [`zip`] and [`legacy`] find pickle and
//! storages in the two file formats; [`state_dict`] finds the tensors in what the pickle built.

mod calls;
mod legacy;
mod pickle;
mod state_dict;
#[cfg(test)]
mod tests;
mod zip;

use std::collections::BTreeMap;
use std::sync::Arc;

use pickle::{Pickle, StorageKey};
use state_dict::Found;

use super::weights::{Storage, Weights};
use crate::error::{Error, Result};

pub(super) use legacy::parse as parse_legacy;
pub(super) use zip::parse as parse_zip;

/// What the parser of a pickle may use in memory, in bytes, for a file of this size.
fn budget(file: usize) -> usize {
    (8 << 20) + file
}

/// Joins what a pickle names with the bytes behind it. `storage` finds the bytes of one storage.
fn weights(
    format: &'static str,
    pickle: &Pickle,
    found: Found,
    mut storage: impl FnMut(&StorageKey) -> Result<Arc<Storage>>,
) -> Result<Weights> {
    let mut out = Weights::empty(format);
    let mut storages: BTreeMap<usize, Arc<Storage>> = BTreeMap::new();
    for (name, view) in found.tensors {
        let shared = match storages.get(&view.storage) {
            Some(known) => known.clone(),
            None => {
                let key = pickle.storages().get(view.storage).ok_or_else(|| Error::new("a storage is missing"))?;
                let made = storage(key).map_err(|e| Error::new(format!("tensor {name}: {e}")))?;
                storages.insert(view.storage, made.clone());
                made
            }
        };
        out.insert(name, view.layout, view.dtype, &shared)?;
    }
    for (key, value) in found.metadata {
        out.describe(key, value);
    }
    found.notes.into_iter().for_each(|note| out.note(note));
    Ok(out)
}
