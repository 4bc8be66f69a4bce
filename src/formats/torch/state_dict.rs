//! Where the tensors are in what a checkpoint holds: the dict itself, or one inside it beside optimiser and arguments.

use super::pickle::{Id, Pickle, Value, View};
use crate::error::{Error, Result};
use crate::formats::weights::{MAX_NAME, MAX_TENSORS};

/// Keys under which checkpoints keep the model's tensors, the surest first.
const WRAPPERS: [&str; 6] = ["state_dict", "model_state_dict", "model", "module", "net", "network"];
/// What the keys of training state start with.
const TRAINING: [&str; 8] = ["optim", "opt_", "sched", "lr_sched", "scaler", "amp", "rng", "loss_scal"];
/// Prefixes that wrappers of modules put before every name.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];
/// Deepest nesting of dicts.
const MAX_DEPTH: usize = 32;
/// Most values that are looked at.
const MAX_VISITS: usize = 1 << 18;
/// Most texts and numbers that are kept, and most notes.
const MAX_BESIDE: usize = 256;
/// Longest text that is kept, in bytes.
const MAX_TEXT: usize = 1024;

/// Tensors by name, and what lay beside them.
#[derive(Default)]
pub(super) struct Found {
    pub tensors: Vec<(String, View)>,
    pub metadata: Vec<(String, String)>,
    pub notes: Vec<String>,
}

/// Finds the state dict in what a pickle built.
///
/// # Errors
/// If there is none, or it needs an object that cannot be read.
pub(super) fn find(pickle: &Pickle, root: Id) -> Result<Found> {
    let mut search = Search { pickle, found: Found::default(), visits: 0, unsaid: 0 };
    search.descend(root, "", 0)?;
    if search.unsaid > 0 {
        search.found.notes.push(format!("{} more were skipped", search.unsaid));
    }
    let mut found = search.found;
    if found.tensors.is_empty() {
        return Err(Error::new("holds no tensors by name; save model.state_dict() with torch.save"));
    }
    while let Some(prefix) = PREFIXES.iter().find(|&p| found.tensors.iter().all(|(name, _)| name.starts_with(p))) {
        found.tensors.iter_mut().for_each(|(name, _)| drop(name.drain(..prefix.len())));
        found.notes.push(format!("the prefix {prefix:?} of every name was taken off"));
    }
    Ok(found)
}

struct Search<'p, 'a> {
    pickle: &'p Pickle<'a>,
    found: Found,
    visits: usize,
    /// What was skipped beyond the notes that are kept.
    unsaid: usize,
}

impl<'a> Search<'_, 'a> {
    /// Goes down to the dict that has the tensors; `path` is where it is.
    fn descend(&mut self, id: Id, path: &str, depth: usize) -> Result<()> {
        let pickle = self.pickle;
        let value = pickle.get(id);
        let Some(entries) = pickle.entries(id).filter(|_| depth < MAX_DEPTH) else {
            let words = self.words(value);
            return Err(Error::new(format!(
                "holds {words}, not a dict of tensors; save model.state_dict() with torch.save"
            )));
        };
        let script = matches!(value, Value::Object { .. });
        let inner = if script { None } else { self.wrapped(entries, depth)? };
        let Some(inner) = inner else { return self.take(id, "", depth) };
        let mut below = String::new();
        for &(key, child) in entries {
            let at = join(path, &self.key(key)?)?;
            if child == inner {
                self.note(format!("the tensors are those of {at:?}"));
                below = at;
            } else {
                self.beside(at, child);
            }
        }
        self.descend(inner, &below, depth + 1)
    }

    /// The dict that `entries` are put around, if they are: the one of a usual key, or the only one of tensors that is not training's.
    fn wrapped(&mut self, entries: &[(Id, Id)], depth: usize) -> Result<Option<Id>> {
        for usual in WRAPPERS {
            let named =
                entries.iter().rev().find(|&&(k, _)| matches!(self.pickle.get(k), Value::Text(k) if *k == usual));
            if let Some(&(_, child)) = named
                && self.holds_tensors(child, depth + 1)?
            {
                return Ok(Some(child));
            }
        }
        if entries.iter().any(|&(_, child)| self.is_tensor(child)) || self.is_optimiser(entries) {
            return Ok(None);
        }
        let mut inside = None;
        for &(key, child) in entries {
            if !self.is_training(key) && self.holds_tensors(child, depth + 1)? {
                if inside.is_some() {
                    return Ok(None);
                }
                inside = Some(child);
            }
        }
        Ok(inside)
    }

    /// Takes every tensor of a dict or object, dicts in it included; `path` goes before the names.
    fn take(&mut self, id: Id, path: &str, depth: usize) -> Result<()> {
        let pickle = self.pickle;
        let Some(entries) = pickle.entries(id).filter(|entries| !self.is_optimiser(entries)) else { return Ok(()) };
        if depth >= MAX_DEPTH {
            return Err(Error::new(format!("dicts inside dicts, deeper than {MAX_DEPTH}; this is no file of weights")));
        }
        let script = matches!(pickle.get(id), Value::Object { .. });
        for &(key, child) in entries {
            self.visit()?;
            let name = join(path, &self.key(key)?)?;
            match pickle.get(child) {
                Value::Tensor(_) if self.found.tensors.len() >= MAX_TENSORS => {
                    return Err(Error::new(format!("more than {MAX_TENSORS} tensors; this is no model's file")));
                }
                Value::Tensor(view) => self.found.tensors.push((name, (**view).clone())),
                Value::Unreadable(why) => return Err(Error::new(format!("tensor {name:?} {why}"))),
                Value::Skipped(maker) if !script => {
                    return Err(Error::new(format!(
                        "{name:?} is made by {maker}, which is not one of the functions that plain tensors need and is never called; \
                         save a plain state dict"
                    )));
                }
                Value::Dict(_) | Value::Object { .. } if self.is_training(key) => {
                    self.note(format!("{name:?} was skipped: training state"));
                }
                Value::Dict(_) | Value::Object { .. } => self.take(child, &name, depth + 1)?,
                // Every module of a script has a few of these; only the model's own tell something.
                _ if script && (!path.is_empty() || name == "training") => {}
                _ => self.beside(name, child),
            }
        }
        Ok(())
    }

    /// What lies beside the tensors: plain values are kept, the rest is named.
    fn beside(&mut self, at: String, id: Id) {
        let value = self.pickle.get(id);
        match self.plain(value) {
            Some(text) if self.found.metadata.len() < MAX_BESIDE => self.found.metadata.push((at, text)),
            _ if matches!(value, Value::None) => {}
            _ => self.note(format!("{at:?} was skipped: {}", self.words(value))),
        }
    }

    fn note(&mut self, note: String) {
        if self.found.notes.len() < MAX_BESIDE {
            self.found.notes.push(note);
        } else {
            self.unsaid += 1;
        }
    }

    fn visit(&mut self) -> Result<()> {
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err(Error::new("refers to the same objects too often; this is no file of weights"));
        }
        Ok(())
    }

    fn is_tensor(&self, id: Id) -> bool {
        matches!(self.pickle.get(id), Value::Tensor(_) | Value::Unreadable(_))
    }

    /// Whether a dict has a tensor anywhere in it, and is not an optimiser's.
    fn holds_tensors(&mut self, id: Id, depth: usize) -> Result<bool> {
        let Some(entries) = self.pickle.entries(id) else { return Ok(false) };
        if depth >= MAX_DEPTH || self.is_optimiser(entries) {
            return Ok(false);
        }
        for &(_, child) in entries {
            self.visit()?;
            if self.is_tensor(child) || self.holds_tensors(child, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_training(&self, key: Id) -> bool {
        matches!(self.pickle.get(key), Value::Text(key) if TRAINING.iter().any(|t| key.starts_with(t)))
    }

    fn is_optimiser(&self, entries: &[(Id, Id)]) -> bool {
        entries.iter().any(|&(k, _)| matches!(self.pickle.get(k), Value::Text("param_groups")))
    }

    /// A key as text.
    fn key(&self, id: Id) -> Result<String> {
        match self.pickle.get(id) {
            Value::Text(key) if key.len() <= MAX_NAME => Ok((*key).to_owned()),
            Value::Int(key) => Ok(key.to_string()),
            other => Err(Error::new(format!(
                "a dict with {} as a key or a key too long; save a plain state dict",
                self.words(other)
            ))),
        }
    }

    fn plain(&self, value: &Value<'a>) -> Option<String> {
        Some(match value {
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Text(text) if text.len() <= MAX_TEXT => (*text).to_owned(),
            _ => return None,
        })
    }

    /// What a value is, for people.
    fn words(&self, value: &Value<'a>) -> String {
        match value {
            Value::None => "nothing".to_owned(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => "a number".to_owned(),
            Value::Text(_) | Value::Bytes(_) => "a text".to_owned(),
            Value::Tuple(items) | Value::List(items) => format!("a list of {}", items.len()),
            Value::Dict(entries) => format!("a dict of {}", entries.len()),
            Value::Global(global) => format!("the class or function {global}"),
            Value::Object { class, .. } => format!("an object of class {class}"),
            Value::Storage(_) => "a storage".to_owned(),
            Value::Tensor(_) | Value::Unreadable(_) => "a tensor outside the model".to_owned(),
            Value::Skipped(maker) => format!("an object of {maker}, which is never made"),
        }
    }
}

fn join(path: &str, key: &str) -> Result<String> {
    if path.len() + key.len() >= MAX_NAME {
        return Err(Error::new(format!("a name of more than {MAX_NAME} bytes; this is no model's file")));
    }
    Ok(if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") })
}
