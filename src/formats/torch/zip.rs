//! torch.save's format since 1.6, and TorchScript's: a zip archive of a pickle and one entry per storage.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use super::pickle::{Pickle, StorageKey};
use super::{budget, state_dict, weights};
use crate::buffer::FileBytes;
use crate::error::{Error, Result};
use crate::formats::weights::{Storage, Sum, Weights, crc32};

/// Entries that an archive may have: a storage each for the most tensors, with room for TorchScript's code.
const MAX_ENTRIES: u64 = 65_536;

/// Bytes before the name in an entry's own header.
const HEADER: usize = 30;

/// Reads the pickle of an archive; storages stay where they are.
pub(in crate::formats) fn parse(file: &Arc<FileBytes>) -> Result<Weights> {
    let archive = Archive::open(file.bytes())?;
    let folder = archive.folder()?;
    let read = |name: &str| archive.find(&format!("{folder}{name}")).map(|entry| archive.bytes(entry)).transpose();
    if let Some(order) = read("byteorder")?
        && order.trim_ascii() != b"little"
    {
        let order = String::from_utf8_lossy(&order).chars().take(20).collect::<String>();
        return Err(Error::new(format!(
            "written with byte order {order:?}; load and save it again on a little-endian machine"
        )));
    }
    let script = archive.find(&format!("{folder}constants.pkl")).is_some();
    let bytes = read("data.pkl")?.ok_or_else(|| Error::new("without data.pkl"))?;
    let mut pickle = Pickle::new(budget(file.bytes().len()));
    let (root, _) = pickle.run(&bytes)?;
    let found = state_dict::find(&pickle, root)?;
    // Where its bytes start is in the header of each storage, all over the file.
    let storages = format!("{folder}data/");
    archive
        .entries
        .iter()
        .filter(|(name, _)| name.starts_with(&storages))
        .for_each(|(_, e)| file.soon(e.header, HEADER));
    // Entries of an honest archive lie side by side, so what tensors take of them is not more than the file.
    let left = Cell::new(file.bytes().len());
    let format = if script { "TorchScript archive" } else { "torch.save zip" };
    let mut sums = Vec::new();
    let mut sum = |name: String, entry: Entry| -> Result<()> {
        if !entry.deflated {
            sums.push(Sum { name, start: archive.start(entry)?, len: entry.size, crc: entry.crc });
        }
        Ok(())
    };
    if let Some(entry) = archive.find(&format!("{folder}data.pkl")) {
        sum("data.pkl".to_owned(), entry)?;
    }
    let mut weights = weights(format, &pickle, found, |key| {
        let StorageKey { key: name, element, numel, .. } = key;
        let entry = archive
            .find(&format!("{folder}data/{name}"))
            .ok_or_else(|| Error::new(format!("its storage data/{name} is not in the archive; fetch it again")))?;
        if numel.checked_mul(element.size() as u64).is_none_or(|bytes| bytes > entry.size as u64) {
            return Err(Error::new(format!(
                "its storage data/{name} has {} bytes where {numel} elements are declared; fetch it again",
                entry.size
            )));
        }
        left.set(left.get().checked_sub(entry.packed).ok_or_else(|| Error::new("storages of the archive overlap"))?);
        sum(format!("data/{name}"), entry)?;
        match entry.deflated {
            false => Storage::in_file(file, archive.start(entry)?, entry.size, 8),
            true => Ok(Storage::in_memory(&archive.bytes(entry)?)),
        }
    })?;
    weights.sums(sums);
    Ok(weights)
}

/// The directory of a zip archive (PKWARE's APPNOTE 6.3, parts 4.3 to 4.5).
struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<&'a str, Entry>,
    /// Bytes that may still be unpacked.
    unpacked: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Where its local header is.
    header: usize,
    packed: usize,
    size: usize,
    /// Checksum of what it unpacks to.
    crc: u32,
    deflated: bool,
}

fn damaged() -> Error {
    Error::new("not a whole zip archive, cut short or damaged; fetch or write it again")
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or_else(damaged)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u16::from_le_bytes(array(bytes, at)?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u32::from_le_bytes(array(bytes, at)?).into())
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

fn index(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| damaged())
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self> {
        let (mut at, entries) = Self::directory(bytes)?;
        if entries > MAX_ENTRIES {
            return Err(Error::new(format!(
                "a zip archive of {entries} entries, more than {MAX_ENTRIES}; no file of weights"
            )));
        }
        let mut out = Self { bytes, entries: BTreeMap::new(), unpacked: Cell::new((1 << 20) + bytes.len()) };
        for _ in 0..entries {
            let header = bytes.get(at..).ok_or_else(damaged)?;
            if !header.starts_with(b"PK\x01\x02") {
                return Err(damaged());
            }
            let (name, extra, comment) = (u16_at(header, 28)?, u16_at(header, 30)?, u16_at(header, 32)?);
            let after = 46 + name + extra;
            let text = std::str::from_utf8(header.get(46..46 + name).ok_or_else(damaged)?).map_err(|_| damaged())?;
            let entry = Self::entry(header, header.get(46 + name..after).ok_or_else(damaged)?, text)?;
            if let Some(entry) = entry
                && out.entries.insert(text, entry).is_some()
            {
                return Err(Error::new(format!("a zip archive with two entries {text:?}; fetch or write it again")));
            }
            at += after + comment;
        }
        Ok(out)
    }

    /// Where the directory starts, and its number of entries.
    fn directory(bytes: &[u8]) -> Result<(usize, u64)> {
        // The record at the end is followed by a comment of at most 65535 bytes.
        let tail = bytes.len().saturating_sub(22 + 65_535);
        let end =
            bytes.get(tail..).and_then(|tail| tail.windows(4).rposition(|w| w == b"PK\x05\x06")).ok_or_else(damaged)?
                + tail;
        let (entries, start) = (u16_at(bytes, end + 10)? as u64, u32_at(bytes, end + 16)?);
        if end + 22 + u16_at(bytes, end + 20)? > bytes.len() {
            return Err(damaged());
        }
        let locator = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07"));
        match locator {
            Some(locator) => {
                let record = index(u64_at(bytes, locator + 8)?)?;
                if !bytes.get(record..).is_some_and(|b| b.starts_with(b"PK\x06\x06")) {
                    return Err(damaged());
                }
                Ok((index(u64_at(bytes, record + 48)?)?, u64_at(bytes, record + 32)?))
            }
            None => Ok((index(start)?, entries)),
        }
    }

    /// An entry of the directory; nothing for a folder.
    fn entry(header: &[u8], mut extra: &[u8], name: &str) -> Result<Option<Entry>> {
        let (flags, method) = (u16_at(header, 8)?, u16_at(header, 10)?);
        let (mut packed, mut size, mut start) = (u32_at(header, 20)?, u32_at(header, 24)?, u32_at(header, 42)?);
        // Values that need 64 bits are in an extra field, in this order.
        while extra.len() >= 4 {
            let (tag, len) = (u16_at(extra, 0)?, u16_at(extra, 2)?);
            let field = extra.get(4..4 + len).ok_or_else(damaged)?;
            if tag == 1 {
                let mut at = 0;
                for value in [&mut size, &mut packed, &mut start] {
                    if *value == u64::from(u32::MAX) {
                        *value = u64_at(field, at)?;
                        at += 8;
                    }
                }
            }
            extra = &extra[4 + len..];
        }
        if name.ends_with('/') {
            return Ok(None);
        }
        let refused = |what: &str| {
            Error::new(format!("entry {name:?} of the zip archive is {what}; write it again with torch.save"))
        };
        if flags & 1 != 0 {
            return Err(refused("encrypted"));
        }
        let deflated = match method {
            0 if packed != size => return Err(damaged()),
            0 => false,
            8 => true,
            _ => return Err(refused("compressed in a way that this program does not read")),
        };
        let crc = u32::from_le_bytes(array(header, 16)?);
        Ok(Some(Entry { crc, header: index(start)?, packed: index(packed)?, size: index(size)?, deflated }))
    }

    fn find(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// The folder that everything is in, with its slash: torch names it after the file.
    fn folder(&self) -> Result<&'a str> {
        let mut folders = self.entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let folder =
            folders.find(|folder| folder.matches('/').count() <= 1 && (folder.is_empty() || folder.ends_with('/')));
        folder.ok_or_else(|| {
            let first: Vec<_> = self.entries.keys().take(3).collect();
            Error::new(format!("a zip archive, but not of torch.save: it has no data.pkl, but {first:?}"))
        })
    }

    /// Where the bytes of an entry start, which only its own header tells.
    fn start(&self, entry: Entry) -> Result<usize> {
        let header = self.bytes.get(entry.header..).ok_or_else(damaged)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(damaged());
        }
        Ok(entry.header + HEADER + u16_at(header, 26)? + u16_at(header, 28)?)
    }

    /// The bytes of an entry, unpacked.
    fn bytes(&self, entry: Entry) -> Result<Cow<'a, [u8]>> {
        let start = self.start(entry)?;
        let packed = self.bytes.get(start..).and_then(|b| b.get(..entry.packed)).ok_or_else(damaged)?;
        if !entry.deflated {
            return Ok(packed.into());
        }
        let left = self.unpacked.get().checked_sub(entry.size);
        let left = left
            .ok_or_else(|| Error::new("a zip archive that unpacks to more than twice its size; no file of weights"))?;
        self.unpacked.set(left);
        let mut out = vec![0; entry.size];
        let mut decoder = flate2::bufread::DeflateDecoder::new(packed);
        decoder.read_exact(&mut out).map_err(|_| damaged())?;
        if crc32(&out[..])? != entry.crc {
            return Err(Error::new("damaged: an entry is not what its checksum says; fetch or write it again"));
        }
        Ok(out.into())
    }
}
