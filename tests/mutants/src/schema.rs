//! All mutants of a file in one source: each is compiled in and switched on at run time.

use std::ops::Range;

use crate::find::{Kind, Mutant};

/// The module that every mutated crate gets: which mutant is on is read from the environment once.
pub const SWITCH: &str = r#"//! Which mutant is on.
use std::sync::LazyLock;
static ON: LazyLock<usize> = LazyLock::new(|| std::env::var("MUTANT").map_or(0, |id| id.parse().unwrap()));
/// Whether it is this one.
#[inline(always)]
pub fn on(id: usize) -> bool {
    *ON == id
}
"#;

/// The source with its mutants, and where each of them came to stand.
pub fn build(text: &str, mutants: &[(usize, &Mutant)]) -> (String, Vec<(usize, Range<usize>)>) {
    let mut sorted = mutants.to_vec();
    sorted.sort_by_key(|(id, m)| (m.range.start, std::cmp::Reverse(m.range.end), *id));
    let mut schema = Schema { text, out: String::new(), places: Vec::new() };
    schema.emit(0..text.len(), &sorted);
    (schema.out, schema.places)
}

struct Schema<'a> {
    text: &'a str,
    out: String,
    places: Vec<(usize, Range<usize>)>,
}

impl Schema<'_> {
    fn emit(&mut self, range: Range<usize>, mut mutants: &[(usize, &Mutant)]) {
        let mut at = range.start;
        while let Some(((id, m), rest)) = mutants.split_first() {
            self.out.push_str(&self.text[at..m.range.start]);
            let begin = self.out.len();
            let inner =
                rest.iter().take_while(|(_, other)| other.range.end <= m.range.end && !m.range.is_empty()).count();
            let switch = format!("if crate::mutants::on({id}) {{ ");
            if m.kind == Kind::Return {
                self.out.push_str(&format!(" {switch}{} }} ", m.after));
            } else {
                self.out.push_str(if m.kind == Kind::Expression { "(" } else { "" });
                self.out.push_str(&format!("{switch}{} }} else {{ ", m.after));
                self.emit(m.range.clone(), &rest[..inner]);
                self.out.push_str(if m.kind == Kind::Expression { " })" } else { " }" });
            }
            self.places.push((*id, begin..self.out.len()));
            (at, mutants) = (m.range.end, &rest[inner..]);
        }
        self.out.push_str(&self.text[at..range.end]);
    }
}
