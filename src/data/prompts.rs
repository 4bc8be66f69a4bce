//! prompts.csv: what is asked of an image, per label.

use std::collections::BTreeMap;
use std::path::Path;

use super::table::Table;
use crate::error::{Error, Result};
use crate::spelling::nearest;

/// The prompts of every label, in the order in which the table first names the labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompts(pub Vec<Prompt>);

/// Most memory of the texts of `*`, which every label gets, in bytes.
const MOST_SHARED: usize = 8 << 20;

/// What speaks for a label and what against it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The label.
    pub label: String,
    /// Texts of its presence, at least one.
    pub positive: Vec<String>,
    /// Texts of its absence; may be empty.
    pub negative: Vec<String>,
}

impl Prompt {
    fn new(label: &str) -> Self {
        Self { label: label.to_owned(), positive: Vec::new(), negative: Vec::new() }
    }
}

impl Prompts {
    /// All texts, label by label: those for it, then those against it.
    pub fn texts(&self) -> Vec<&str> {
        self.0.iter().flat_map(|p| p.positive.iter().chain(&p.negative)).map(String::as_str).collect()
    }

    /// Reads a table with the columns `label`, `polarity` and `text`. Rows of label `*` are added to every label, after its own.
    ///
    /// # Errors
    /// If a polarity is unknown, a label or text blank, a label has no positive text, or `*` has too many; the message names it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let table = Table::open(path)?;
        let (label, polarity, text) = (table.column("label")?, table.column("polarity")?, table.column("text")?);
        let mut prompts: Vec<Prompt> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut shared = Prompt::new("*");
        for record in table.rows() {
            for column in [label, text] {
                if record.get(column).is_empty() {
                    return Err(record.error(column, "blank; write one, or remove the row"));
                }
            }
            let name = record.get(label);
            let prompt = if name == "*" {
                &mut shared
            } else {
                let at = *places.entry(name).or_insert(prompts.len());
                if at == prompts.len() {
                    prompts.push(Prompt::new(name));
                }
                &mut prompts[at]
            };
            let value = record.get(polarity);
            let texts = match value {
                "positive" => &mut prompt.positive,
                "negative" => &mut prompt.negative,
                _ => {
                    let near = nearest(value, &["positive", "negative"]).unwrap_or("positive or negative");
                    return Err(record.error(polarity, format!("{value:?} is no polarity; write {near}")));
                }
            };
            texts.push(record.get(text).to_owned());
        }
        let shares = shared.positive.iter().chain(&shared.negative).map(|text| text.len() + size_of::<String>());
        if shares.sum::<usize>().saturating_mul(prompts.len()) > MOST_SHARED {
            let many = shared.positive.len() + shared.negative.len();
            return Err(Error::new(format!(
                "{many} texts of \"*\" for each of {} labels are more than can be asked of an image; write fewer",
                prompts.len()
            ))
            .at(table.path()));
        }
        for prompt in &mut prompts {
            prompt.positive.extend_from_slice(&shared.positive);
            prompt.negative.extend_from_slice(&shared.negative);
            if prompt.positive.is_empty() {
                return Err(
                    Error::new(format!("label {:?} has no positive text; add one", prompt.label)).at(table.path())
                );
            }
        }
        if prompts.is_empty() {
            return Err(Error::new("no label besides \"*\"; add rows that name one").at(table.path()));
        }
        Ok(Self(prompts))
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::folder;
    use super::*;

    fn open(rows: &str) -> Result<Prompts> {
        let table = format!("label,polarity,text\n{rows}");
        Prompts::open(folder(&[("prompts.csv", &table)]).path().join("prompts.csv"))
    }

    #[test]
    fn shared_rows_reach_every_label() {
        let rows = "*,negative,All clear.\nEdema,positive,Edema.\nMass,positive,A mass.\nEdema,negative,No edema.\nEdema,positive,Wet lungs.\n";
        let Prompts(prompts) = open(rows).unwrap();
        assert_eq!(prompts.iter().map(|p| p.label.as_str()).collect::<Vec<_>>(), ["Edema", "Mass"]);
        assert_eq!(prompts[0].positive, ["Edema.", "Wet lungs."]);
        assert_eq!(prompts[0].negative, ["No edema.", "All clear."]);
        assert_eq!(prompts[1].negative, ["All clear."]);
        assert!(open("Mass,positive,A mass.\n").unwrap().0[0].negative.is_empty());
    }

    #[test]
    fn complaints_name_what_is_wrong() {
        let error = |rows| open(rows).unwrap_err().to_string();
        assert!(
            error("a,Pozitive,t\n")
                .contains("line 2, column \"polarity\": \"Pozitive\" is no polarity; write positive")
        );
        assert!(error("a,positive,\n").contains("line 2, column \"text\": blank"));
        assert!(error("a,negative,t\n").contains("label \"a\" has no positive text"));
        assert!(error("*,positive,t\n").contains("no label besides"));
    }

    #[test]
    fn many_labels_are_read_soon_and_shared_rows_do_not_multiply_without_end() {
        let own: String = (0..50_000).map(|i| format!("label {i},positive,Text number {i} of a label.\n")).collect();
        assert_eq!(open(&own).unwrap().0.len(), 50_000);
        let shared = "*,negative,All clear.\n".repeat(30);
        assert!(open(&format!("{own}{shared}")).unwrap_err().to_string().contains("30 texts of \"*\""));
    }
}
