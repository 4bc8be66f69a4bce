//! Tables of scores, decisions and labels: read, joined on the first column, and written.

use std::collections::BTreeMap;
use std::path::Path;

use crate::data::{self, Record};
use crate::error::{At, Error, Result};
use crate::files::write_atomic;

/// A CSV table whose first column identifies the rows.
#[derive(Debug)]
pub struct Table {
    table: data::Table,
    /// Number of the row of each identifier.
    row_of: BTreeMap<String, usize>,
}

impl Table {
    /// Reads a table, as [`data::Table::open`] does.
    ///
    /// # Errors
    /// What that refuses; only one column, no rows, or an identifier twice.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(data::Table::open(path)?)
    }

    fn new(table: data::Table) -> Result<Self> {
        let wrong = |message: String| Err(Error::new(message).at(table.path()));
        if let [only] = table.columns() {
            return wrong(format!(
                "only one column, {only:?}; columns are separated by commas, and the first identifies the rows"
            ));
        }
        if table.is_empty() {
            return wrong("a header but no rows".to_owned());
        }
        let row_of = table.index(0)?.into_iter().map(|(id, row)| (id.to_owned(), row)).collect();
        Ok(Self { table, row_of })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.table.path()
    }

    /// The columns after the identifying one.
    fn values(&self) -> &[String] {
        &self.table.columns()[1..]
    }

    /// Identifiers in the table's order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.table.rows().map(|row| row.get(0))
    }

    /// A column of the rows `ids`, as text.
    ///
    /// # Errors
    /// No such column, or no row of that name.
    pub fn texts(&self, column: &str, ids: &[String]) -> Result<Vec<String>> {
        self.map(column, ids, |row, column| Ok(row.get(column).to_owned()))
    }

    /// A column of the rows `ids`, as finite numbers.
    ///
    /// # Errors
    /// As [`Table::texts`]; and what is no finite number, by line and column.
    pub fn numbers(&self, column: &str, ids: &[String]) -> Result<Vec<f64>> {
        self.map(column, ids, |row, column| match row.get(column).parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(row.error(column, format!("{:?} is no finite number", data::beginning(row.get(column))))),
        })
    }

    /// A column of the rows `ids`, as labels or decisions: 1, 0, or unknown (blank or -1).
    ///
    /// # Errors
    /// As [`Table::texts`]; and what is none of these, by line and column.
    pub fn labels(&self, column: &str, ids: &[String]) -> Result<Vec<Option<bool>>> {
        self.map(column, ids, |row, column| row.label(column))
    }

    fn map<T>(&self, column: &str, ids: &[String], value: impl Fn(Record<'_>, usize) -> Result<T>) -> Result<Vec<T>> {
        let column = self.table.column(column)?;
        let cell = |id: &String| {
            let row = self.row_of.get(id).ok_or_else(|| Error::new(format!("no row {id:?}")).at(self.path()))?;
            value(self.table.row(*row), column)
        };
        ids.iter().map(cell).collect()
    }
}

/// Rows and labels that several tables share.
#[derive(Clone, Debug, PartialEq)]
pub struct Join {
    /// Identifiers that all tables have, in the first one's order.
    pub ids: Vec<String>,
    /// Columns that all tables have, in the first one's order.
    pub labels: Vec<String>,
    /// What was left out, one line per table.
    pub notes: Vec<String>,
}

/// Joins tables on their first columns, whatever these are called; the other columns that all have are the labels, but for those of `except`.
///
/// # Errors
/// Where no row or no label is common to all.
pub fn join(tables: &[&Table], except: &[&str]) -> Result<Join> {
    let Some((first, others)) = tables.split_first() else {
        return Err(Error::new("no tables to join"));
    };
    let in_all = |id: &str| others.iter().all(|table| table.row_of.contains_key(id));
    let ids: Vec<String> = first.ids().filter(|id| in_all(id)).map(String::from).collect();
    if let Some(table) = others.iter().find(|table| !first.ids().any(|id| table.row_of.contains_key(id))) {
        let named = |table: &Table| format!("{:?}", table.ids().next().unwrap_or_default());
        return Err(Error::new(format!(
            "no row in common with {}; rows are matched by the first column, which begins with {} here and {} there",
            first.path().display(),
            named(table),
            named(first)
        ))
        .at(table.path()));
    }
    if ids.is_empty() {
        return Err(Error::new("no row is in all of the tables").at(first.path()));
    }
    let shared = |name: &String| others.iter().all(|table| table.values().contains(name));
    let labels: Vec<String> =
        first.values().iter().filter(|name| shared(name) && !except.contains(&name.as_str())).cloned().collect();
    if labels.is_empty() {
        let columns = |table: &&Table| format!("{} has {}", table.path().display(), table.values().join(", "));
        let all = tables.iter().map(columns).collect::<Vec<_>>().join("; ");
        return Err(Error::new(format!("no label is in all of the tables: {all}")));
    }
    let mut notes = Vec::new();
    for table in tables {
        let left: Vec<&str> = table.ids().filter(|id| !(first.row_of.contains_key(*id) && in_all(id))).collect();
        if let Some(some) = left.first() {
            let (left, rows, path) = (left.len(), table.table.len(), table.path().display());
            notes.push(format!("{path}: {left} of {rows} rows are not in every table and left out, such as {some:?}"));
        }
    }
    Ok(Join { ids, labels, notes })
}

/// Writes scores.csv: `image`, then one column per label; `scores[label][row]`.
///
/// # Errors
/// What the file system refuses.
///
/// # Panics
/// If there is not one column per label, or not one score per image.
#[track_caller]
pub fn write_scores(path: &Path, images: &[&str], names: &[String], scores: &[Vec<f64>]) -> Result<()> {
    assert_eq!(names.len(), scores.len(), "labels and columns of scores");
    assert!(scores.iter().all(|column| column.len() == images.len()), "one score per image and label");
    let told = |error: csv::Error| Error::new(error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = std::iter::once("image").chain(names.iter().map(String::as_str));
    writer.write_record(header).map_err(told).at(path)?;
    for (row, image) in images.iter().enumerate() {
        let cells = scores.iter().map(|column| column[row].to_string());
        writer.write_record(std::iter::once((*image).to_string()).chain(cells)).map_err(told).at(path)?;
    }
    let bytes = writer.into_inner().map_err(|error| Error::new(error.to_string())).at(path)?;
    write_atomic(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Table> {
        let path = Path::new("some.csv");
        Table::new(data::Table::parse(path, text.to_vec()).at(path)?)
    }

    fn table(text: &str) -> Result<Table> {
        parse(text.as_bytes())
    }

    #[test]
    fn marks_line_ends_quotes_and_spaces_are_read() {
        let table = table("\u{feff}image,\"Edema, mild\", b\r\n\"x,1\",1.0,\r\n\r\ny , -1,0\r\n").unwrap();
        assert_eq!(table.values(), ["Edema, mild", "b"]);
        let ids: Vec<String> = table.ids().map(String::from).collect();
        assert_eq!(ids, ["x,1", "y"]);
        assert_eq!(table.labels("Edema, mild", &ids).unwrap(), [Some(true), None]);
        assert_eq!(table.labels("b", &ids).unwrap(), [None, Some(false)]);
        assert_eq!(table.numbers("Edema, mild", &ids).unwrap(), [1.0, -1.0]);
    }

    #[test]
    fn what_is_wrong_is_named_by_file_line_and_column() {
        for (text, says) in [
            ("", "no header"),
            ("\u{feff}", "no header"),
            ("image,a\n", "no rows"),
            ("image,a,b\nx,1,2\ny,3\n", "line 3 has 2 fields where the header has 3"),
            ("image,a\nx,1\ny,2\nx,3\n", "line 4, column \"image\": \"x\" is on line 2 already"),
            ("image,a,a\nx,1,1\n", "names column \"a\" twice"),
            ("image;a\nx;1\n", "separated by commas"),
            ("image,a\n\"x,1\n", "line 2: the quote that opens a field is not closed"),
        ] {
            let said = table(text).unwrap_err().to_string();
            assert!(said.starts_with("some.csv: ") && said.contains(says), "{text:?}: {said}");
            assert_eq!(said.lines().count(), 1);
        }
        assert!(parse(b"image,a\nx,1\n\xff\xfe,2\n").unwrap_err().to_string().contains("line 3, field 1 is not UTF-8"));
        assert!(Table::open(Path::new("/nowhere.csv")).unwrap_err().to_string().starts_with("/nowhere.csv: "));
        let table = table("image,a\nx,0.5\ny,nan\nz,\n").unwrap();
        let ids = ["x", "y", "z"].map(String::from);
        let said = table.labels("a", &ids).unwrap_err().to_string();
        assert!(said.contains("line 2, column \"a\": \"0.5\" is no label"), "{said}");
        assert!(table.numbers("a", &ids).unwrap_err().to_string().contains("line 3, column \"a\": \"nan\""));
        assert!(table.numbers("a", &ids[2..]).unwrap_err().to_string().contains("line 4"));
        assert!(table.numbers("score", &ids).unwrap_err().to_string().contains("no column \"score\"; it has image, a"));
        assert!(table.texts("a", &["w".into()]).is_err());
    }

    #[test]
    fn tables_are_joined_whatever_the_order_of_rows_and_columns() {
        let a = table("image,l1,patient,l2\nx,1,p,0\ny,0,p,1\nz,1,q,1\n").unwrap();
        let b = table("Study,l2,l1,patient\nz,.1,.2,q\nw,.3,.4,r\nx,.5,.6,p\n").unwrap();
        let join = join(&[&a, &b], &["patient"]).unwrap();
        assert_eq!((join.ids.clone(), join.labels), (vec!["x".into(), "z".into()], vec!["l1".into(), "l2".into()]));
        assert_eq!(b.numbers("l1", &join.ids).unwrap(), [0.6, 0.2]);
        assert_eq!(join.notes.len(), 2);
        assert!(join.notes[0].contains("1 of 3 rows") && join.notes[0].contains("\"y\""), "{:?}", join.notes);
        let other = table("id,l1\nq,1\n").unwrap();
        assert!(super::join(&[&a, &other], &[]).unwrap_err().to_string().contains("begins with \"q\" here and \"x\""));
        let other = table("id,l3\nx,1\n").unwrap();
        assert!(super::join(&[&a, &other], &[]).unwrap_err().to_string().contains("has l3"));
    }

    #[test]
    fn scores_come_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        let scores = [vec![0.1 + 0.2, -1e-300], vec![1.0, 1.0 / 3.0]];
        let names = ["a, b".to_string(), "c".to_string()];
        write_scores(&path, &["x.png", "y.png"], &names, &scores).unwrap();
        let table = Table::open(&path).unwrap();
        let ids = ["x.png", "y.png"].map(String::from);
        assert_eq!(table.values(), ["a, b", "c"]);
        assert_eq!([table.numbers("a, b", &ids).unwrap(), table.numbers("c", &ids).unwrap()], scores);
    }
}
