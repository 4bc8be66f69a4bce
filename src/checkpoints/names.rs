//! Two-way name tables: what a family of checkpoints calls the parameters that the models here have, and how its tensors lie.
//!
//! A table is a text, one rule a line, the first that matches counts:
//! ```text
//! visual.conv1.weight              -> vision_model.embeddings.patch_embedding.weight
//! visual.blocks.#.attn.in_proj_*   -> vision_model.encoder.layers.#.self_attn.{q,k,v}_proj.*
//! visual.proj                      -> visual_projection.weight, transposed
//! trunk.cls_token                  -> vision_model.embeddings.class_embedding, leading 2
//! *position_ids                    -> ignored: the numbers of the positions
//! bert.*.LayerNorm.gamma           ~> text_model.*.LayerNorm.weight
//! ```
//! `#` is a number and `*` the rest of a name, the same on both sides; `{q,k,v}` are equal parts of the rows, in this order;
//! `leading 2` are two more dimensions of size 1 in front; a rule with `~>` is for reading alone. Writing, too, takes the first that matches.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::op::Meta;
use crate::spelling::{distance, nearest};
use crate::tensor::Tensor;

/// How a canonical parameter lies in its foreign tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// It is the tensor.
    Whole,
    /// Part `part` of `of` equal parts of the rows.
    Rows {
        /// Which part, from 0.
        part: usize,
        /// How many parts.
        of: usize,
    },
    /// The other way round: a matrix stored [in, out].
    Transposed,
    /// Without this many leading dimensions of size 1.
    Leading(usize),
}

impl View {
    /// The parameter as a view of its tensor; `None` if the tensor's dims do not allow it.
    pub(super) fn of(self, foreign: &Tensor) -> Option<Tensor> {
        let dims = self.dims(*foreign.dims())?;
        Some(match self {
            Self::Whole => foreign.clone(),
            Self::Rows { part, .. } => foreign.narrow(0, part * dims[0], dims[0]),
            Self::Transposed => foreign.transpose(0, 1),
            Self::Leading(_) => foreign.reshape(dims),
        })
    }

    /// The parameter's dims by its tensor's.
    fn dims(self, foreign: Dims) -> Option<Dims> {
        match self {
            Self::Whole => Some(foreign),
            Self::Rows { of, .. } => {
                let rows = *foreign.first()?;
                rows.is_multiple_of(of).then(|| foreign.with(0, rows / of))
            }
            Self::Transposed => {
                let [rows, cols] = foreign[..] else { return None };
                Some(Dims::new(&[cols, rows]))
            }
            Self::Leading(n) => {
                let (front, dims) = foreign.split_at_checked(n)?;
                front.iter().all(|&size| size == 1).then(|| Dims::new(dims))
            }
        }
    }
}

/// A name with places for numbers and a rest.
#[derive(Clone, Debug)]
struct Pattern(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Number,
    Rest,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        for c in text.chars() {
            match (c, pieces.last_mut()) {
                ('#', _) => pieces.push(Piece::Number),
                ('*', _) => pieces.push(Piece::Rest),
                (c, Some(Piece::Text(text))) => text.push(c),
                (c, _) => pieces.push(Piece::Text(c.to_string())),
            }
        }
        Self(pieces)
    }

    /// What stands at the places, if the name is of this form.
    fn places<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        fn go<'n>(pieces: &[Piece], name: &'n str, places: &mut Vec<&'n str>) -> bool {
            let Some((piece, others)) = pieces.split_first() else { return name.is_empty() };
            let mut taken = |at: usize| {
                places.push(&name[..at]);
                let fits = go(others, &name[at..], places);
                if !fits {
                    places.pop();
                }
                fits
            };
            match piece {
                Piece::Text(text) => name.strip_prefix(text.as_str()).is_some_and(|rest| go(others, rest, places)),
                Piece::Number => {
                    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
                    digits > 0 && taken(digits)
                }
                Piece::Rest => (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(taken),
            }
        }
        let mut places = Vec::new();
        go(&self.0, name, &mut places).then_some(places)
    }

    /// The name with these places filled.
    fn filled(&self, places: &[&str]) -> String {
        let mut places = places.iter();
        let mut name = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Number | Piece::Rest => name.push_str(places.next().copied().unwrap_or_default()),
            }
        }
        name
    }
}

struct Rule {
    foreign: Pattern,
    written: bool,
    meaning: Meaning,
}

enum Meaning {
    /// The canonical parameters that are views of the tensor.
    Parameters(Vec<(Pattern, View)>),
    /// Known and not used, and why.
    Ignored(String),
}

impl Rule {
    fn new(line: &str) -> Self {
        let malformed = || -> ! { panic!("name table: {line:?} is not FOREIGN -> CANONICAL") };
        let written = !line.contains("~>");
        let arrow = if written { "->" } else { "~>" };
        let (foreign, meaning) = line.split_once(arrow).unwrap_or_else(|| malformed());
        let (foreign, meaning) = (Pattern::new(foreign.trim()), meaning.trim());
        if let Some(reason) = meaning.strip_prefix("ignored:") {
            return Self { foreign, written, meaning: Meaning::Ignored(reason.trim().to_owned()) };
        }
        if let (Some(open), Some(close)) = (meaning.find('{'), meaning.find('}')) {
            let names: Vec<&str> = meaning[open + 1..close].split(',').collect();
            let of = names.len();
            let part = |(part, name): (usize, &&str)| {
                let canonical = format!("{}{name}{}", &meaning[..open], &meaning[close + 1..]);
                (Pattern::new(&canonical), View::Rows { part, of })
            };
            return Self {
                foreign,
                written,
                meaning: Meaning::Parameters(names.iter().enumerate().map(part).collect()),
            };
        }
        let (canonical, view) = match meaning.split_once(',') {
            None => (meaning, View::Whole),
            Some((canonical, how)) => match how.trim().strip_prefix("leading ").map(str::parse) {
                Some(Ok(n)) => (canonical, View::Leading(n)),
                None if how.trim() == "transposed" => (canonical, View::Transposed),
                _ => malformed(),
            },
        };
        Self { foreign, written, meaning: Meaning::Parameters(vec![(Pattern::new(canonical), view)]) }
    }
}

/// A table of rules: see the head of this file.
pub struct Table(Vec<Rule>);

impl Table {
    /// Reads a table that stands in this program's source.
    pub fn new(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        Self(lines.map(Rule::new).collect())
    }

    /// What a name might have been meant as: the foreign name of each rule with the numbers and the end of this one.
    pub(super) fn like(&self, name: &str) -> Vec<String> {
        /// Longer ones are no misspelt ones, and comparing them takes long.
        const LONGEST: usize = 200;
        if name.len() > LONGEST {
            return Vec::new();
        }
        let of = |pattern: &Pattern| -> String {
            let mut numbers = name.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
            let end = name.rsplit('.').next().unwrap_or_default();
            let piece = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Number => numbers.next().unwrap_or("0").to_owned(),
                Piece::Rest => end.to_owned(),
            };
            pattern.0.iter().map(piece).collect()
        };
        let begins = |rule: &&Rule| matches!(rule.foreign.0.first(), Some(Piece::Text(_)));
        self.0.iter().filter(begins).map(|rule| of(&rule.foreign)).collect()
    }

    /// The canonical parameters that the tensors of a file (names, dims and types) are, and what became of every other name. Where
    /// one parameter has two names, the one of the earlier rule counts and the other is an alias.
    ///
    /// # Errors
    /// If a tensor's dims do not allow its view.
    pub fn read<'n>(&self, foreign: impl IntoIterator<Item = (&'n str, Meta)>) -> Result<Read> {
        let mut found = BTreeMap::<String, (usize, Entry, Meta)>::new();
        let mut read = Read::default();
        for (name, meta) in foreign {
            let rule = self.0.iter().enumerate().find_map(|(i, rule)| Some((i, rule, rule.foreign.places(name)?)));
            let Some((priority, rule, places)) = rule else {
                read.unknown.push(name.to_owned());
                continue;
            };
            let parameters = match &rule.meaning {
                Meaning::Parameters(parameters) => parameters,
                Meaning::Ignored(why) => {
                    read.ignored.push((name.to_owned(), why.clone()));
                    continue;
                }
            };
            for (pattern, view) in parameters {
                let wrong =
                    || Error::new(format!("tensor {name} has dims {:?}, which cannot be read as {view:?}", meta.dims));
                let meta = Meta { dims: view.dims(meta.dims).ok_or_else(wrong)?, ..meta };
                let entry = Entry { canonical: pattern.filled(&places), foreign: name.to_owned(), view: *view };
                match found.remove(&entry.canonical) {
                    None => {
                        found.insert(entry.canonical.clone(), (priority, entry, meta));
                    }
                    Some(other) => {
                        let (kept, alias) =
                            if other.0 <= priority { (other, entry) } else { ((priority, entry, meta), other.1) };
                        read.aliases.push(alias);
                        found.insert(kept.1.canonical.clone(), kept);
                    }
                }
            }
        }
        for (canonical, (_, entry, meta)) in found {
            read.names.0.push(entry);
            read.metas.insert(canonical, meta);
        }
        Ok(read)
    }

    /// The entries of canonical parameters, for writing them in this family's way.
    ///
    /// # Errors
    /// Listing the parameters that the family has no name for.
    pub fn names<'n>(&self, canonical: impl IntoIterator<Item = &'n str>) -> Result<Names> {
        let (mut names, mut without) = (Vec::new(), Vec::new());
        for name in canonical {
            match self.entry(name) {
                Some(entry) => names.push(entry),
                None => without.push(name.to_owned()),
            }
        }
        if without.is_empty() {
            return Ok(Names(names));
        }
        Err(Error::new(format!("this layout has no names for {}", listed(&without, &String::clone))))
    }

    /// What this family calls a canonical parameter.
    pub(super) fn entry(&self, canonical: &str) -> Option<Entry> {
        self.entries(canonical).next()
    }

    /// Every name that this family may have for a canonical parameter, the surest first.
    fn entries(&self, canonical: &str) -> impl Iterator<Item = Entry> {
        self.0.iter().filter(|rule| rule.written).filter_map(move |rule| {
            let Meaning::Parameters(parameters) = &rule.meaning else { return None };
            parameters.iter().find_map(|(pattern, view)| {
                let foreign = rule.foreign.filled(&pattern.places(canonical)?);
                Some(Entry { canonical: canonical.to_owned(), foreign, view: *view })
            })
        })
    }
}

/// What [`Table::read`] made of a file.
#[derive(Debug, Default)]
pub struct Read {
    /// Dims and types by canonical name.
    pub metas: BTreeMap<String, Meta>,
    /// Where each lies.
    pub names: Names,
    /// Second names of parameters that [`Read::names`] has already.
    pub aliases: Vec<Entry>,
    /// Names that are known and not used, and why.
    pub ignored: Vec<(String, String)>,
    /// Names that no rule knows.
    pub unknown: Vec<String>,
}

/// One canonical parameter: a view of a foreign tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in the models here.
    pub canonical: String,
    /// The name in the checkpoint.
    pub foreign: String,
    /// How it lies there.
    pub view: View,
}

/// The entries of one checkpoint: both ways between canonical parameters and the checkpoint's tensors.
#[derive(Clone, Debug, Default)]
pub struct Names(pub Vec<Entry>);

impl Names {
    /// What the checkpoint calls the tensor that a canonical parameter is, or is a part of.
    pub fn foreign_name(&self, canonical: &str) -> Option<&str> {
        self.0.iter().find(|entry| entry.canonical == canonical).map(|entry| entry.foreign.as_str())
    }

    /// Tensors of canonical parameters (values, or their gradients) put together as the checkpoint has them, by its names. Parameters
    /// that are not given leave their tensor out.
    ///
    /// # Errors
    /// If only some parts of a tensor are given.
    pub fn foreign(&self, canonical: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let mut parts: BTreeMap<&str, Vec<(View, Option<&Tensor>)>> = BTreeMap::new();
        for entry in &self.0 {
            parts.entry(&entry.foreign).or_default().push((entry.view, canonical.get(&entry.canonical)));
        }
        let mut out = BTreeMap::new();
        for (name, mut parts) in parts {
            parts.sort_by_key(|(view, _)| match view {
                View::Rows { part, .. } => *part,
                _ => 0,
            });
            let given: Vec<&Tensor> = parts.iter().filter_map(|(_, tensor)| *tensor).collect();
            let (Some((view, _)), Some(first)) = (parts.first(), given.first()) else { continue };
            let of = if let View::Rows { of, .. } = view { *of } else { 1 };
            if given.len() != of {
                return Err(Error::new(format!("{name} has {of} parts, of which {} are given", given.len())));
            }
            let tensor = match view {
                View::Whole => first.packed(),
                View::Rows { .. } => Tensor::concat(&given, 0),
                View::Transposed => first.transpose(0, 1).packed(),
                View::Leading(n) => {
                    let dims: Vec<usize> = std::iter::repeat_n(1, *n).chain(first.dims().iter().copied()).collect();
                    first.reshape(Dims::new(&dims))
                }
            };
            out.insert(name.to_owned(), tensor);
        }
        Ok(out)
    }
}

/// How many names an error lists.
const LISTED: usize = 20;

/// The first names of a list in words, and how many more there are.
fn listed<'n>(names: impl IntoIterator<Item = &'n String>, say: &dyn Fn(&String) -> String) -> String {
    let mut names = names.into_iter();
    let mut text = names.by_ref().take(LISTED).map(say).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

/// What a file calls, or would call, a canonical parameter: of the family's names for it the one most like those of the file.
pub(super) fn own_name(canonical: &str, read: &Read, table: &Table) -> String {
    if let Some(found) = read.names.foreign_name(canonical) {
        return found.to_owned();
    }
    let names: Vec<String> = table.entries(canonical).map(|entry| entry.foreign).collect();
    let unlike =
        |name: &String| read.names.0.iter().map(|entry| distance(entry.foreign.as_bytes(), name.as_bytes())).min();
    let best = if names.len() < 2 { names.into_iter().next() } else { names.into_iter().min_by_key(unlike) };
    best.unwrap_or_else(|| canonical.to_owned())
}

/// Compares what a model needs with what a file has.
///
/// # Errors
/// Listing tensors that are missing (with the nearest name among those that nothing asks for), that have other dims, and that
/// nothing asks for (with the nearest name that the family has), by the file's own names.
pub(super) fn check(expected: &BTreeMap<String, Dims>, read: &Read, table: &Table) -> Result<()> {
    let own_name = |canonical: &str| own_name(canonical, read, table);
    let unused = read.metas.keys().filter(|name| !expected.contains_key(*name)).map(|name| own_name(name));
    let unexpected: BTreeSet<String> = read.unknown.iter().cloned().chain(unused).collect();
    let (mut missing, mut other) = (BTreeSet::new(), Vec::new());
    for (name, dims) in expected {
        match read.metas.get(name) {
            None => {
                missing.insert(own_name(name));
            }
            Some(meta) if meta.dims != *dims => {
                other.push(format!("{} (as {name}: {:?}, needed {dims:?})", own_name(name), meta.dims));
            }
            Some(_) => {}
        }
    }
    let with = |name: &String, near: Option<&str>| match near {
        Some(near) => format!("{name} (nearest: {near})"),
        None => name.clone(),
    };
    let told: Vec<String> = [
        ("missing", missing.len(), listed(&missing, &|name| with(name, nearest(name, &unexpected)))),
        ("of other dims", other.len(), listed(&other, &String::clone)),
        (
            "not part of the model",
            unexpected.len(),
            listed(&unexpected, &|name| {
                let like = if read.unknown.contains(name) { table.like(name) } else { Vec::new() };
                with(name, nearest(name, &like))
            }),
        ),
    ]
    .into_iter()
    .filter(|(_, count, _)| *count > 0)
    .map(|(what, count, names)| format!("{count} {what}: {names}"))
    .collect();
    if told.is_empty() { Ok(()) } else { Err(Error::new(format!("tensors that do not fit: {}", told.join("; ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_told_with_what_it_may_have_been() {
        let table = Table::new("v.blocks.#.mlp.* -> x.#.*\nv.ln_pre.* -> n.*");
        let near = |name: &str| nearest(name, &table.like(name)).map(str::to_owned);
        assert_eq!(near("v.block.11.mlp.bias").as_deref(), Some("v.blocks.11.mlp.bias"));
        assert_eq!(near("v.ln_pree.weight").as_deref(), Some("v.ln_pre.weight"));
        assert_eq!((near("optimizer"), near(&"v.ln_pre.".repeat(99))), (None, None));
    }

    #[test]
    fn rules_read_both_ways() {
        let table = Table::new(
            "a.#.in_proj_* -> x.#.{q,k,v}_proj.*
             proj -> p.weight, transposed
             cls -> c, leading 2
             *ids -> ignored: numbers
             again.* -> x.*
             first.* -> x.*",
        );
        let entry = table.entry("x.12.k_proj.weight").unwrap();
        assert_eq!((&*entry.foreign, entry.view), ("a.12.in_proj_weight", View::Rows { part: 1, of: 3 }));
        assert!(table.entry("x.q_proj.weight").is_some_and(|e| e.foreign == "again.q_proj.weight"));
        assert!(table.entry("y").is_none());

        let ramp = |dims: [usize; 2]| {
            let values: Vec<f32> = (0..dims[0] * dims[1]).map(|i| i as f32).collect();
            Tensor::from_slice(&values, dims)
        };
        let tensors = BTreeMap::from([
            ("a.0.in_proj_weight".to_owned(), ramp([6, 2])),
            ("proj".to_owned(), ramp([2, 3])),
            ("cls".to_owned(), ramp([1, 4]).reshape([1, 1, 4])),
            ("text.ids".to_owned(), ramp([1, 1])),
            ("first.y".to_owned(), ramp([2, 2])),
            ("again.y".to_owned(), ramp([2, 2])),
            ("stray".to_owned(), ramp([1, 1])),
        ]);
        let read = table.read(tensors.iter().map(|(name, t)| (name.as_str(), t.meta()))).unwrap();
        assert_eq!(read.unknown, ["stray"]);
        let views: BTreeMap<String, Tensor> =
            read.names.0.iter().map(|e| (e.canonical.clone(), e.view.of(&tensors[&e.foreign]).unwrap())).collect();
        assert!(views.iter().all(|(name, t)| read.metas[name] == t.meta()));
        assert_eq!(views["x.0.k_proj.weight"].to_vec::<f32>(), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(views["p.weight"].to_vec::<f32>(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(views["c"].dims()[..], [4]);
        assert_eq!(read.names.foreign_name("x.y"), Some("again.y"));
        assert_eq!(read.aliases.iter().map(|e| &*e.foreign).collect::<Vec<_>>(), ["first.y"]);
        let back = read.names.foreign(&views).unwrap();
        for name in ["a.0.in_proj_weight", "proj", "cls"] {
            assert_eq!(
                (back[name].meta(), back[name].to_f64_vec()),
                (tensors[name].meta(), tensors[name].to_f64_vec())
            );
        }
        let part = BTreeMap::from([("x.0.q_proj.weight".to_owned(), ramp([2, 2]))]);
        assert!(read.names.foreign(&part).unwrap_err().to_string().contains("3 parts"));

        let expected =
            BTreeMap::from([("c".to_owned(), Dims::new(&[5])), ("x.1.k_proj.weight".to_owned(), Dims::new(&[2, 2]))]);
        let message = check(&expected, &read, &table).unwrap_err().to_string();
        assert!(message.contains("1 missing: a.1.in_proj_weight (nearest: a.0.in_proj_weight)"), "{message}");
        assert!(message.contains("cls (as c: [4], needed [5])") && message.contains("stray"), "{message}");
    }

    #[test]
    fn what_is_missing_is_named_as_the_file_names_the_rest() {
        let table = Table::new("a.* -> x.*\nb.* -> x.*");
        let one = Tensor::zeros([2], crate::DType::F32);
        let expected = BTreeMap::from(["x.one", "x.two"].map(|name| (name.to_owned(), Dims::new(&[2]))));
        for (has, missing) in [("a.one", "1 missing: a.two"), ("b.one", "1 missing: b.two")] {
            let message = check(&expected, &table.read([(has, one.meta())]).unwrap(), &table).unwrap_err().to_string();
            assert!(message.contains(missing), "{message}");
        }
    }
}
