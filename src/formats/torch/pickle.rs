//! A stack machine for pickles that can build values and nothing else, in bounded memory.

use std::collections::BTreeMap;

use super::calls;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Longest module or class name, in bytes.
const MAX_NAME: usize = 256;

/// The place of a value. Values lie in one table and refer to each other by place: deep nesting needs no deep recursion and
/// cycles do no harm.
pub(super) type Id = u32;

/// What a pickle can build here.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// In order of insertion; of equal keys the last one counts.
    Dict(Vec<(Id, Id)>),
    /// A class or function, named and not called.
    Global(Global<'a>),
    /// An instance of a TorchScript class, with its attributes.
    Object {
        class: Global<'a>,
        state: Option<Id>,
    },
    Storage(usize),
    Tensor(Box<View>),
    /// A tensor that cannot be read, and why.
    Unreadable(Box<str>),
    /// What a callable outside the allow-list would have made.
    Skipped(Global<'a>),
}

/// A class or function by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Global<'a> {
    pub module: &'a str,
    pub name: &'a str,
}

impl std::fmt::Display for Global<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module.escape_debug(), self.name.escape_debug())
    }
}

/// A tensor: elements of a storage.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Index in [`Pickle::storages`].
    pub storage: usize,
    pub dtype: DType,
    pub layout: Layout,
}

/// A storage as the pickle names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StorageKey {
    /// Its key in the file.
    pub key: String,
    /// The type of its elements.
    pub element: Stored,
    /// Its number of elements.
    pub numel: u64,
    /// Its first element in the storage of the file (legacy files; zip files have no views of storages).
    pub offset: u64,
}

/// The type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// One that tensors can have here.
    Known(DType),
    /// Bytes; the tensor says what they are.
    Untyped,
    /// One that they cannot have: its name in torch and its size in bytes.
    Other(&'static str, usize),
}

impl Stored {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::Known(dtype) => dtype.size(),
            Self::Untyped => 1,
            Self::Other(_, size) => size,
        }
    }
}

/// What a pickle built.
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    storages: Vec<StorageKey>,
    /// Key in the file and element type to index in `storages`.
    index: BTreeMap<(String, u64), usize>,
    /// Bytes that may still be used.
    budget: usize,
}

impl<'a> Pickle<'a> {
    /// Nothing yet; building may use `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { values: Vec::new(), storages: Vec::new(), index: BTreeMap::new(), budget }
    }

    /// The value at a place.
    pub fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// All storages that tensors refer to.
    pub fn storages(&self) -> &[StorageKey] {
        &self.storages
    }

    /// Entries of a dict or attributes of an object.
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries),
            Value::Object { state: Some(state), .. } => match self.get(*state) {
                Value::Dict(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// Items of a tuple or list.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Takes memory from the budget. Twice the size, since growing vectors hold that much.
    pub fn charge(&mut self, bytes: usize) -> Result<()> {
        self.budget = self.budget.checked_sub(2 * bytes).ok_or_else(|| {
            Error::new(
                "its pickle builds more objects than a file of this size has reason to; this is no file of weights",
            )
        })?;
        Ok(())
    }

    /// Puts a value into the table.
    pub fn add(&mut self, value: Value<'a>) -> Result<Id> {
        let within = match &value {
            Value::Tuple(items) | Value::List(items) => items.len() * size_of::<Id>(),
            Value::Dict(entries) => entries.len() * size_of::<(Id, Id)>(),
            Value::Tensor(_) => size_of::<View>(),
            Value::Unreadable(why) => why.len(),
            _ => 0,
        };
        self.charge(size_of::<Value>() + within)?;
        let id = Id::try_from(self.values.len()).map_err(|_| Error::new("a pickle of too many objects"))?;
        self.values.push(value);
        Ok(id)
    }

    /// The index of a storage, which is the same for all tensors that share it.
    pub fn storage(&mut self, key: StorageKey) -> Result<usize> {
        let at = (key.key.clone(), key.offset);
        match self.index.get(&at).map(|&i| (i, &self.storages[i])) {
            Some((i, known)) if *known == key => Ok(i),
            Some(_) => Err(Error::new(format!("storage {:?} is declared twice, differently", key.key))),
            None => {
                self.charge(2 * (size_of::<StorageKey>() + key.key.len()))?;
                self.storages.push(key);
                self.index.insert(at, self.storages.len() - 1);
                Ok(self.storages.len() - 1)
            }
        }
    }

    /// Runs one pickle from the start of `bytes`. Returns what it built and how many bytes it took.
    ///
    /// # Errors
    /// If it is damaged, uses an opcode that torch.save does not write, calls what only an attack would call, or exceeds its budget.
    pub fn run(&mut self, bytes: &'a [u8]) -> Result<(Id, usize)> {
        let mut machine = Machine { pickle: self, bytes, at: 0, stack: vec![], marks: vec![], memo: BTreeMap::new() };
        let mut at = 0;
        loop {
            match machine.step() {
                Ok(None) => at = machine.at,
                Ok(Some(value)) => return Ok((value, machine.at)),
                Err(e) => return Err(Error::new(format!("{e} (byte {at} of its pickle)"))),
            }
        }
    }
}

struct Machine<'p, 'a> {
    pickle: &'p mut Pickle<'a>,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl<'a> Machine<'_, 'a> {
    /// Runs one instruction; a value if it was the last.
    fn step(&mut self) -> Result<Option<Id>> {
        match self.u8()? {
            0x80 => self.protocol()?,
            0x95 => self.skip_frame()?,
            b'.' => return self.pop().map(Some),
            // The stack.
            b'(' => self.mark()?,
            b'0' => self.discard()?,
            b'1' => drop(self.pop_to_mark()?),
            b'2' => self.duplicate()?,
            b'q' => self.put_u8()?,
            b'r' => self.put_u32()?,
            0x94 => self.memoize()?,
            b'h' => self.get_u8()?,
            b'j' => self.get_u32()?,
            // Constants.
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => self.int(4)?,
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => self.float()?,
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'T' => self.string(4)?,
            b'U' => self.string(1)?,
            b'B' => self.byte_string(4)?,
            b'C' => self.byte_string(1)?,
            0x8e | 0x96 => self.byte_string(8)?,
            // Containers.
            b')' => self.push(Value::Tuple(vec![]))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => self.tuple_from_mark()?,
            b']' | 0x8f => self.push(Value::List(vec![]))?,
            b'l' | 0x91 => self.list_from_mark()?,
            b'a' => self.append(1)?,
            b'e' | 0x90 => self.append_from_mark()?,
            b'}' => self.push(Value::Dict(vec![]))?,
            b'd' => self.dict_from_mark()?,
            b's' => self.set_item()?,
            b'u' => self.set_items_from_mark()?,
            // Objects.
            b'c' => self.global()?,
            0x93 => self.global_from_stack()?,
            b'R' => self.call(0)?,
            0x81 => self.call(1)?,
            0x92 => self.call(2)?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            opcode => {
                return Err(Error::new(format!(
                    "instruction 0x{opcode:02x} is not one that torch.save writes; save the weights again with torch.save's defaults"
                )));
            }
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<()> {
        match self.u8()? {
            2..=5 => Ok(()),
            other => {
                Err(Error::new(format!("pickle protocol {other}, not 2 to 5; save again with torch.save's defaults")))
            }
        }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let part = usize::try_from(len).ok().and_then(|len| rest.get(..len)).ok_or_else(|| {
            Error::new(format!(
                "the pickle ends where {len} more bytes were to come, cut short or damaged; fetch the file again"
            ))
        })?;
        self.at += part.len();
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn unsigned(&mut self, bytes: u64) -> Result<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().take(MAX_NAME + 1).position(|&b| b == b'\n');
        let end = end.ok_or_else(|| Error::new(format!("a name without an end within {MAX_NAME} bytes")))?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| Error::new("a name that is not UTF-8"))?;
        self.at += end + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        let id = self.pickle.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() == self.stack.capacity() {
            self.pickle.charge(size_of::<Id>() * self.stack.len().max(8))?;
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err(Error::new("takes from an empty stack; the file is damaged"));
        }
        self.stack.pop().ok_or_else(|| Error::new("takes from an empty stack; the file is damaged"))
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| Error::new("looks at an empty stack; the file is damaged"))
    }

    fn mark(&mut self) -> Result<()> {
        self.pickle.charge(size_of::<usize>())?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let height = self.marks.pop().ok_or_else(|| Error::new("closes what was not opened; the file is damaged"))?;
        if height > self.stack.len() {
            return Err(Error::new("closes below what it opened; the file is damaged"));
        }
        let items = &self.stack[height..];
        self.pickle.charge(std::mem::size_of_val(items))?;
        let items = items.to_vec();
        self.stack.truncate(height);
        Ok(items)
    }

    fn discard(&mut self) -> Result<()> {
        // As in Python, a mark on top is what is taken away.
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn duplicate(&mut self) -> Result<()> {
        let id = self.top()?;
        self.push_id(id)
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let id = self.top()?;
        self.pickle.charge(2 * size_of::<(u32, Id)>())?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(&key).copied();
        self.push_id(
            id.ok_or_else(|| Error::new(format!("refers to object {key}, which it never made; the file is damaged")))?,
        )
    }

    fn put_u8(&mut self) -> Result<()> {
        let key = self.u8()?;
        self.remember(key.into())
    }

    fn put_u32(&mut self) -> Result<()> {
        let key = u32::from_le_bytes(self.array()?);
        self.remember(key)
    }

    fn memoize(&mut self) -> Result<()> {
        self.remember(self.memo.len() as u32)
    }

    fn get_u8(&mut self) -> Result<()> {
        let key = self.u8()?;
        self.recall(key.into())
    }

    fn get_u32(&mut self) -> Result<()> {
        let key = u32::from_le_bytes(self.array()?);
        self.recall(key)
    }

    fn skip_frame(&mut self) -> Result<()> {
        self.array::<8>().map(drop)
    }

    fn int(&mut self, bytes: u64) -> Result<()> {
        let value = self.unsigned(bytes)?;
        // Only the four-byte form has a sign.
        let value = if bytes == 4 { i64::from(value as u32 as i32) } else { value as i64 };
        self.push(Value::Int(value))
    }

    /// A two's complement integer of any length; one beyond 64 bits is kept as its bytes, which only a file's magic number is.
    fn long(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let bytes = self.take(len)?;
        if bytes.len() > 8 {
            return self.push(Value::Bytes(bytes));
        }
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn float(&mut self) -> Result<()> {
        let bytes = self.array()?;
        self.push(Value::Float(f64::from_be_bytes(bytes)))
    }

    fn text(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| Error::new("a text that is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    /// Python 2's strings: text where they are.
    fn string(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let bytes = self.take(len)?;
        self.push(std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text))
    }

    fn byte_string(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let bytes = self.take(len)?;
        self.push(Value::Bytes(bytes))
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = vec![0; len];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push(Value::Tuple(items))
    }

    fn tuple_from_mark(&mut self) -> Result<()> {
        let items = self.pop_to_mark()?;
        self.push(Value::Tuple(items))
    }

    fn list_from_mark(&mut self) -> Result<()> {
        let items = self.pop_to_mark()?;
        self.push(Value::List(items))
    }

    fn dict_from_mark(&mut self) -> Result<()> {
        let items = self.pop_to_mark()?;
        self.push(Value::Dict(vec![]))?;
        self.insert(&items)
    }

    fn append(&mut self, count: usize) -> Result<()> {
        let mut items = vec![0; count];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.extend(&items)
    }

    fn append_from_mark(&mut self) -> Result<()> {
        let items = self.pop_to_mark()?;
        self.extend(&items)
    }

    fn extend(&mut self, items: &[Id]) -> Result<()> {
        let list = self.top()?;
        self.pickle.charge(std::mem::size_of_val(items))?;
        match self.pickle.values.get_mut(list as usize) {
            Some(Value::List(into)) => into.extend(items),
            Some(Value::Skipped(_)) => {}
            _ => return Err(Error::new("appends to what is no list; the file is damaged")),
        }
        Ok(())
    }

    fn set_item(&mut self) -> Result<()> {
        let (value, key) = (self.pop()?, self.pop()?);
        self.insert(&[key, value])
    }

    fn set_items_from_mark(&mut self) -> Result<()> {
        let items = self.pop_to_mark()?;
        self.insert(&items)
    }

    /// Puts alternating keys and values into the dict on top of the stack.
    fn insert(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.top()?;
        self.pickle.charge(std::mem::size_of_val(items))?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.pickle.values.get_mut(dict as usize) {
            _ if !rest.is_empty() => return Err(Error::new("a key without a value; the file is damaged")),
            Some(Value::Dict(into)) => into.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Some(Value::Skipped(_)) => {}
            _ => return Err(Error::new("sets a key of what is no dict; the file is damaged")),
        }
        Ok(())
    }

    fn global(&mut self) -> Result<()> {
        let (module, name) = (self.line()?, self.line()?);
        self.push(Value::Global(Global { module, name }))
    }

    fn global_from_stack(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.pickle.get(module), self.pickle.get(name)) {
            (&Value::Text(module), &Value::Text(name)) if module.len() <= MAX_NAME && name.len() <= MAX_NAME => {
                self.push(Value::Global(Global { module, name }))
            }
            _ => Err(Error::new(format!("a class whose name is no text of at most {MAX_NAME} bytes"))),
        }
    }

    /// A function called with a tuple of arguments (0), or a class with arguments (1) and keyword arguments (2).
    fn call(&mut self, kind: usize) -> Result<()> {
        if kind == 2 {
            self.pop()?;
        }
        let (args, function) = (self.pop()?, self.pop()?);
        let function = match self.pickle.get(function) {
            &Value::Global(function) => function,
            Value::Skipped(maker) => {
                return Err(Error::new(format!("refused: it calls what {maker} returned, which no weights need")));
            }
            _ => return Err(Error::new("calls what is no function; the file is damaged")),
        };
        let made = if kind == 0 { calls::call(self.pickle, function, args) } else { calls::new(function) }?;
        self.push(made)
    }

    /// The state of an object: attributes of a TorchScript one; nothing that counts of anything else.
    fn build(&mut self) -> Result<()> {
        let given = self.pop()?;
        let top = self.top()?;
        if let Some(Value::Object { state, .. }) = self.pickle.values.get_mut(top as usize) {
            *state = Some(given);
        }
        Ok(())
    }

    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let value = calls::persistent(self.pickle, id)?;
        self.push(value)
    }
}
