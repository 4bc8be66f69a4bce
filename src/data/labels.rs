//! labels.csv: which labels an image has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::pairs::{Pairs, Row};
use super::table::{Record, Table};
use crate::error::{Error, Result};
use crate::spelling::nearest;

/// Labels of images: yes, no, or not known.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// The labels, in the table's order.
    pub names: Vec<String>,
    /// By image, one value per label; `None` is left out for that label.
    pub of: BTreeMap<String, Vec<Option<bool>>>,
}

/// Most labels times images that a column of values may give: 80 of a hundred thousand.
const MOST_LABELS: usize = 8 << 20;

impl Labels {
    /// Reads a table: `image`, then one column per label with 1, 0, and blank or -1 for not known.
    ///
    /// # Errors
    /// If an image stands there twice or a value is something else; the message names line and column.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::by(path.as_ref(), "image")
    }

    /// The labels that `--labels TABLE` and `--labels-from COLUMN` ask for, if either does: those of images; those of the column's
    /// values, where both do; or one per value, where there is no table.
    ///
    /// # Errors
    /// As [`Labels::open`], [`Labels::from_values`] and [`Labels::from_column`]; if no image of the table is in the pairs.
    pub fn choose(pairs: &Pairs, table: Option<&Path>, column: Option<&str>) -> Result<Option<Self>> {
        match (table, column) {
            (Some(table), Some(column)) => Self::from_values(pairs, column, table).map(Some),
            (Some(table), None) => Self::open(table)?.matched(pairs, table).map(Some),
            (None, Some(column)) => Self::from_column(pairs, column).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// These, unless they are of other images than the pairs have.
    fn matched(self, pairs: &Pairs, path: &Path) -> Result<Self> {
        if pairs.rows.iter().any(|row| self.of.contains_key(&row.image)) {
            return Ok(self);
        }
        let first = |name: Option<&String>| name.map_or_else(|| "none".to_owned(), |name| format!("{name:?}"));
        let (own, theirs) = (first(self.of.keys().next()), first(pairs.rows.first().map(|row| &row.image)));
        let message = format!("no image in common with {}", pairs.path.display());
        let remedy = format!("name the images as there: {theirs}, for example, where here {own} is");
        Err(Error::new(format!("{message}; {remedy}")).at(path))
    }

    /// One line on labelled images that are not in the pairs, and on images of `rows` that have no labels, if there are any.
    pub fn unmatched<'a>(&self, pairs: &Pairs, rows: impl Iterator<Item = &'a Row>) -> Option<String> {
        let images: BTreeSet<&str> = pairs.rows.iter().map(|row| row.image.as_str()).collect();
        let asked: BTreeSet<&str> = rows.map(|row| row.image.as_str()).collect();
        let strange: Vec<&str> = self.of.keys().map(String::as_str).filter(|image| !images.contains(image)).collect();
        let bare: Vec<&str> = asked.iter().copied().filter(|image| !self.of.contains_key(*image)).collect();
        let line = |some: &[&str], all: usize, what: &str| {
            let first = some.first()?;
            Some(format!("{} of {all} {what}, such as {first:?}", some.len()))
        };
        let lines = [
            line(&strange, self.of.len(), "images of the labels are not in the pairs"),
            line(&bare, asked.len(), "images that are judged have no labels"),
        ];
        let lines: Vec<String> = lines.into_iter().flatten().collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// A table whose rows are named by the column `key`.
    fn by(path: &Path, key: &str) -> Result<Self> {
        let table = Table::open(path)?;
        let image = table.column(key)?;
        let columns: Vec<usize> = (0..table.columns().len()).filter(|&column| column != image).collect();
        if columns.is_empty() {
            return Err(Error::new(format!("no labels; add one column per label beside {key:?}")).at(table.path()));
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
    /// If there is no such column, it is blank everywhere or has too many values to be labels, or an image has two values.
    pub fn from_column(pairs: &Pairs, column: &str) -> Result<Self> {
        let values = values(pairs, column)?;
        let names: BTreeSet<&str> = values.values().copied().filter(|value| !value.is_empty()).collect();
        if names.len().saturating_mul(values.len()) > MOST_LABELS {
            let many = format!("column {column:?} has {} values for {} images", names.len(), values.len());
            let remedy = "which are no labels; name a column of few values, or give a table of labels";
            return Err(Error::new(format!("{many}, {remedy}")).at(&pairs.path));
        }
        let known = |value: &str| names.iter().map(|&name| (!value.is_empty()).then_some(name == value)).collect();
        Ok(Self {
            of: values.iter().map(|(&image, &value)| (image.to_owned(), known(value))).collect(),
            names: names.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Takes the labels of each value of a column of the pairs from a table of values: a column of the same name, then one per label, as
    /// in [`Labels::open`]. So several values can share a label, and a value can be left out of one.
    ///
    /// # Errors
    /// As [`Labels::from_column`] and [`Labels::open`], or if a value has no row.
    pub fn from_values(pairs: &Pairs, column: &str, path: impl AsRef<Path>) -> Result<Self> {
        let (path, values) = (path.as_ref(), values(pairs, column)?);
        let table = Self::by(path, column)?;
        let mut of = BTreeMap::new();
        for (&image, &value) in &values {
            let labels = match table.of.get(value) {
                Some(labels) => labels.clone(),
                None if value.is_empty() => vec![None; table.names.len()],
                None => {
                    let message =
                        format!("no row of {column} {value:?}, which {image:?} has; add one, blank for unknown");
                    return Err(Error::new(message).at(path));
                }
            };
            of.insert(image.to_owned(), labels);
        }
        Ok(Self { names: table.names, of })
    }
}

/// The value of each image in a column of the pairs.
fn values<'a>(pairs: &'a Pairs, column: &str) -> Result<BTreeMap<&'a str, &'a str>> {
    let wrong = |message: String| Error::new(message).at(&pairs.path);
    let columns: BTreeSet<&str> =
        pairs.rows.iter().take(1).flat_map(|row| row.more.names()).map(String::as_str).collect();
    if !columns.contains(column) {
        let all = || columns.iter().copied().collect::<Vec<_>>().join(", ");
        let remedy = nearest(column, columns.iter().copied()).map_or_else(all, |near| format!("is {near:?} meant?"));
        return Err(wrong(format!("no column {column:?} to take labels from; {remedy}")));
    }
    let values: BTreeMap<&str, &str> =
        pairs.rows.iter().map(|row| (row.image.as_str(), row.more.get(column).unwrap_or_default())).collect();
    if let Some(row) = pairs.rows.iter().find(|row| Some(values[row.image.as_str()]) != row.more.get(column)) {
        return Err(wrong(format!("image {:?} has two values in column {column:?}; keep one", row.image)));
    }
    if values.values().all(|value| value.is_empty()) {
        return Err(wrong(format!("column {column:?} is blank everywhere, so it gives no labels")));
    }
    Ok(values)
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

        // A table of values: two share a label, one is left out of the other.
        let pairs = pairs("a,t,viral\nb,t,\nc,t,normal\n");
        let table = |rows: &str| {
            let folder = folder(&[("values.csv", &format!("finding,pneumonia,viral pneumonia\n{rows}"))]);
            Labels::choose(&pairs, Some(&folder.path().join("values.csv")), Some("finding"))
        };
        let labels = table("viral,1,1\nbacterial,1,0\nnormal,0,\n").unwrap().unwrap();
        assert_eq!(labels.names, ["pneumonia", "viral pneumonia"]);
        let of = |image: &str| [labels.of[image][0], labels.of[image][1]];
        assert_eq!([of("a"), of("b"), of("c")], [[Some(true); 2], [None; 2], [Some(false), None]]);
        let error = table("viral,1,1\n").unwrap_err().to_string();
        assert!(
            error.ends_with("values.csv: no row of finding \"normal\", which \"c\" has; add one, blank for unknown")
        );
    }

    #[test]
    fn free_text_is_no_label_and_a_hundred_thousand_images_are_read_soon() {
        let rows: String = (0..100_000).map(|i| format!("image number {i}.png,{},-1,\n", i % 2)).collect();
        let labels = open(&format!("image,Edema,Mass,Nodule\n{rows}")).unwrap();
        assert_eq!(labels.of["image number 99999.png"], [Some(true), None, None]);
        let names: Vec<String> = (0..2900).map(|i| format!("a{i}")).collect();
        let rows: String = names.iter().map(|name| format!("{name},text,what is said of {name}\n")).collect();
        let table = format!("image,text,impression\n{rows}");
        let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        files.push(("pairs.csv", &table));
        let pairs = Pairs::open(folder(&files).path().join("pairs.csv"), 0).unwrap();
        let error = Labels::from_column(&pairs, "impression").unwrap_err().to_string();
        assert!(error.contains("2900 values for 2900 images, which are no labels"), "{error}");
    }
}
