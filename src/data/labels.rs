//! labels.csv: which labels an image has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::pairs::Pairs;
use super::table::{Record, Table, nearest};
use crate::error::{Error, Result};

/// Labels of images: yes, no, or not known.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// The labels, in the table's order.
    pub names: Vec<String>,
    /// By image, one value per label; `None` is left out for that label.
    pub of: BTreeMap<String, Vec<Option<bool>>>,
}

impl Labels {
    /// Reads a table: `image`, then one column per label with 1, 0, and blank or -1 for not known.
    ///
    /// # Errors
    /// If an image stands there twice or a value is something else; the message names line and column.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let table = Table::open(path)?;
        let image = table.column("image")?;
        let columns: Vec<usize> = (0..table.columns().len()).filter(|&column| column != image).collect();
        if columns.is_empty() {
            return Err(Error::new("no labels; add one column per label beside \"image\"").at(table.path()));
        }
        let names = columns.iter().map(|&column| table.columns()[column].clone()).collect();
        table.index(image)?;
        let values = |row: Record<'_>| columns.iter().map(|&column| row.label(column)).collect::<Result<Vec<_>>>();
        let of = table.rows().map(|row| Ok((row.get(image).to_owned(), values(row)?))).collect::<Result<_>>()?;
        Ok(Self { names, of })
    }

    /// Takes each value of a column of the pairs as a label (in alphabetical order) that its rows have and others have not; where the
    /// column is blank, no label is known.
    ///
    /// # Errors
    /// If there is no such column, it is blank everywhere, or an image has two values.
    pub fn from_column(pairs: &Pairs, column: &str) -> Result<Self> {
        let wrong = |message: String| Error::new(message).at(&pairs.path);
        let columns: BTreeSet<&str> = pairs.rows.iter().flat_map(|row| row.more.keys()).map(String::as_str).collect();
        if !columns.contains(column) {
            let all = || columns.iter().copied().collect::<Vec<_>>().join(", ");
            let remedy =
                nearest(column, columns.iter().copied()).map_or_else(all, |near| format!("is {near:?} meant?"));
            return Err(wrong(format!("no column {column:?} to take labels from; {remedy}")));
        }
        let values: BTreeMap<&str, &str> =
            pairs.rows.iter().map(|row| (row.image.as_str(), row.more[column].as_str())).collect();
        if let Some(row) = pairs.rows.iter().find(|row| values[row.image.as_str()] != row.more[column]) {
            return Err(wrong(format!("image {:?} has two values in column {column:?}; keep one", row.image)));
        }
        let names: BTreeSet<&str> = values.values().copied().filter(|value| !value.is_empty()).collect();
        if names.is_empty() {
            return Err(wrong(format!("column {column:?} is blank everywhere, so it gives no labels")));
        }
        let known = |value: &str| names.iter().map(|&name| (!value.is_empty()).then_some(name == value)).collect();
        Ok(Self {
            of: values.iter().map(|(&image, &value)| (image.to_owned(), known(value))).collect(),
            names: names.into_iter().map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::folder;
    use super::*;

    fn open(table: &str) -> Result<Labels> {
        Labels::open(folder(&[("labels.csv", table)]).path().join("labels.csv"))
    }

    #[test]
    fn values_are_yes_no_or_not_known() {
        let labels = open("Edema,image,No Finding\n1,a,0\n-1.0,b,\n0.0,c,1.0\n").unwrap();
        assert_eq!(labels.names, ["Edema", "No Finding"]);
        assert_eq!(labels.of["a"], [Some(true), Some(false)]);
        assert_eq!(labels.of["b"], [None, None]);
        assert_eq!(labels.of["c"], [Some(false), Some(true)]);
    }

    #[test]
    fn complaints_name_line_and_column() {
        let error = |table| open(table).unwrap_err().to_string();
        assert!(error("image,x\na,1\nb,0\na,0\n").contains("line 4, column \"image\": \"a\" is on line 2 already"));
        assert!(error("image,x\na,yes\n").contains("line 2, column \"x\": \"yes\" is no label"));
        assert!(error("image\na\n").contains("no labels"));
        assert!(error("x,y\n1,0\n").contains("no column \"image\""));
    }

    #[test]
    fn a_column_of_the_pairs_serves_as_labels() {
        let pairs = |rows: &str| {
            let table = format!("image,text,finding\n{rows}");
            let folder = folder(&[("a", ""), ("b", ""), ("c", ""), ("pairs.csv", &table)]);
            Pairs::open(folder.path().join("pairs.csv"), 0).unwrap()
        };
        let labels = Labels::from_column(&pairs("a,t,viral\na,u,viral\nb,t,\nc,t,normal\n"), "finding").unwrap();
        assert_eq!(labels.names, ["normal", "viral"]);
        assert_eq!((&labels.of["a"][..], &labels.of["b"][..]), (&[Some(false), Some(true)][..], &[None, None][..]));
        let error = |rows, column| Labels::from_column(&pairs(rows), column).unwrap_err().to_string();
        assert!(error("a,t,x\n", "Findings").contains("is \"finding\" meant?"));
        assert!(error("a,t,x\na,u,y\n", "finding").contains("image \"a\" has two values"));
        assert!(error("a,t,\n", "finding").contains("blank everywhere"));
    }
}
