//! torch.save's format before 1.6: five pickles (magic number, version, system, object, keys), then the storages.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pickle::{Id, Pickle, StorageKey, Value};
use super::{budget, state_dict, weights};
use crate::buffer::FileBytes;
use crate::error::{Error, Result};
use crate::formats::weights::{Storage, Weights};

/// 0x1950a86a20f9469cfc6c, as a pickle has it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The one version that there was.
const VERSION: i64 = 1001;

/// Reads the pickles of a file and where its storages are.
pub(in crate::formats) fn parse(file: &Arc<FileBytes>) -> Result<Weights> {
    let bytes = file.bytes();
    let mut pickle = Pickle::new(budget(bytes.len()));
    let mut at = 0;
    let magic = next(&mut pickle, bytes, &mut at)?;
    if !matches!(pickle.get(magic), Value::Bytes(magic) if *magic == MAGIC) {
        return Err(Error::new("a pickle, but not of torch.save; save a state dict with torch.save or as safetensors"));
    }
    let version = next(&mut pickle, bytes, &mut at)?;
    if !matches!(pickle.get(version), Value::Int(VERSION)) {
        return Err(Error::new(
            "torch.save's old format in an unknown version; load and save it again with a current torch",
        ));
    }
    let system = next(&mut pickle, bytes, &mut at)?;
    let big = |&(key, value)| {
        matches!((pickle.get(key), pickle.get(value)), (Value::Text("little_endian"), Value::Bool(false)))
    };
    if pickle.entries(system).is_some_and(|entries| entries.iter().any(big)) {
        return Err(Error::new("written on a big-endian machine; load and save it again on a little-endian one"));
    }
    let root = next(&mut pickle, bytes, &mut at)?;
    let keys = next(&mut pickle, bytes, &mut at)?;
    let found = state_dict::find(&pickle, root)?;
    let storages = storages(&pickle, keys, bytes, at)?;
    weights("torch.save before 1.6", &pickle, found, |key| {
        let missing = || Error::new(format!("its storage {:?} is not in the file; fetch it again", key.key));
        let &(start, numel) = storages.get(key.key.as_str()).ok_or_else(missing)?;
        let size = key.element.size();
        let inside = key.offset.checked_add(key.numel).is_some_and(|end| end <= numel);
        let (true, Ok(offset), Ok(len)) = (inside, usize::try_from(key.offset), usize::try_from(key.numel)) else {
            return Err(Error::new(format!(
                "its storage {:?} has {numel} elements, but {} from {} are declared; the file is damaged",
                key.key, key.numel, key.offset
            )));
        };
        Storage::in_file(file, start + offset * size, len * size, size)
    })
}

/// Runs the pickle that starts at `at`, and leaves `at` behind it.
fn next<'a>(pickle: &mut Pickle<'a>, bytes: &'a [u8], at: &mut usize) -> Result<Id> {
    let (value, taken) = pickle.run(bytes.get(*at..).unwrap_or_default())?;
    *at += taken;
    Ok(value)
}

/// Key to the start of a storage's bytes and its number of elements. They lie one after the other, each behind its length.
fn storages<'p>(pickle: &'p Pickle, keys: Id, bytes: &[u8], mut at: usize) -> Result<BTreeMap<&'p str, (usize, u64)>> {
    // The sizes of elements are known only from the tensors' side.
    let sizes: BTreeMap<&str, usize> =
        pickle.storages().iter().map(|s: &StorageKey| (s.key.as_str(), s.element.size())).collect();
    let damaged = |what: &str| Error::new(format!("{what}, so the file is cut short or damaged; fetch it again"));
    let mut out = BTreeMap::new();
    for &key in pickle.items(keys).ok_or_else(|| damaged("the list of storages is missing"))? {
        let &Value::Text(key) = pickle.get(key) else { return Err(damaged("a storage has no name")) };
        let (&key, &size) = sizes.get_key_value(key).ok_or_else(|| damaged("a storage belongs to no tensor"))?;
        let length = bytes.get(at..).and_then(<[u8]>::first_chunk).copied();
        let numel = u64::from_le_bytes(length.ok_or_else(|| damaged("a storage is missing"))?);
        let len = numel.checked_mul(size as u64).and_then(|len| usize::try_from(len).ok());
        let end = len.and_then(|len| (at + 8).checked_add(len)).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| damaged(&format!("storage {key:?} ends beyond the file")))?;
        if out.insert(key, (at + 8, numel)).is_some() {
            return Err(damaged("a storage is there twice"));
        }
        at = end;
    }
    Ok(out)
}
