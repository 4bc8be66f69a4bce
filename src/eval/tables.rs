//! Tables of scores, decisions and labels: read, joined on the first column, and written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{At, Error, Result};
use crate::files::write_atomic;

/// A CSV table with named columns whose first one identifies the rows.
#[derive(Clone, Debug)]
pub struct Table {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// Column names, the identifying one first.
    pub columns: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Line of the file that each row begins at.
    lines: Vec<u64>,
    /// Row of each identifier.
    row_of: BTreeMap<String, usize>,
}

impl Table {
    /// Reads a UTF-8 CSV file; a byte-order mark and CRLF are accepted.
    ///
    /// # Errors
    /// A missing or empty file, a ragged row, a column or identifier twice, by line and column.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read(path).at(path)?, path)
    }

    /// Reads the bytes of a table; `path` is its name in messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        Self::parse_text(bytes, path).at(path)
    }

    fn parse_text(bytes: &[u8], path: &Path) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            Error::new(format!("line {line}: not UTF-8 text; save the table as CSV in UTF-8"))
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
        let columns: Vec<String> = reader.headers().map_err(told)?.iter().map(String::from).collect();
        if columns.iter().all(String::is_empty) {
            return Err(Error::new("the table is empty; its first line names the columns"));
        }
        if columns.len() == 1 {
            return Err(Error::new(format!(
                "line 1: only one column, {:?}; columns are separated by commas, the first identifies the rows",
                columns[0]
            )));
        }
        if let Some(twice) = columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
            return Err(Error::new(format!("line 1: two columns are named {:?}; rename or remove one", twice.1)));
        }
        let mut table = Self { path: path.into(), columns, rows: vec![], lines: vec![], row_of: BTreeMap::new() };
        for record in reader.records() {
            let record = record.map_err(told)?;
            let line = record.position().map_or(0, csv::Position::line);
            let (fields, expected) = (record.len(), table.columns.len());
            if fields != expected {
                return Err(Error::new(format!(
                    "line {line}: {fields} fields where the header names {expected} columns; quote fields with commas"
                )));
            }
            if let Some(&earlier) = table.row_of.get(&record[0]) {
                return Err(Error::new(format!(
                    "line {line}, column {:?}: {:?} is already on line {}; keep one row of each",
                    table.columns[0], &record[0], table.lines[earlier]
                )));
            }
            table.row_of.insert(record[0].to_string(), table.rows.len());
            table.rows.push(record.iter().map(String::from).collect());
            table.lines.push(line);
        }
        if table.rows.is_empty() {
            return Err(Error::new("the table has a header but no rows"));
        }
        Ok(table)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no rows; a table that was read has some.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Identifiers in the table's order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|row| row[0].as_str())
    }

    /// A column of the rows `ids`, as text.
    ///
    /// # Errors
    /// No such column, or no row of that name.
    pub fn texts(&self, column: &str, ids: &[String]) -> Result<Vec<String>> {
        self.map(column, ids, |cell| Ok(cell.to_string()))
    }

    /// A column of the rows `ids`, as finite numbers.
    ///
    /// # Errors
    /// As [`Table::texts`]; and what is no finite number, by line and column.
    pub fn numbers(&self, column: &str, ids: &[String]) -> Result<Vec<f64>> {
        self.map(column, ids, |cell| match cell.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err("a score is a finite number"),
        })
    }

    /// A column of the rows `ids`, as labels or decisions: 1, 0, or unknown (blank or -1).
    ///
    /// # Errors
    /// As [`Table::texts`]; and what is none of these, by line and column.
    pub fn labels(&self, column: &str, ids: &[String]) -> Result<Vec<Option<bool>>> {
        self.map(column, ids, |cell| {
            if cell.is_empty() {
                return Ok(None);
            }
            match cell.parse::<f64>() {
                Ok(1.0) => Ok(Some(true)),
                Ok(0.0) => Ok(Some(false)),
                Ok(-1.0) => Ok(None),
                _ => Err("a label is 1, 0, or blank or -1 for unknown"),
            }
        })
    }

    fn map<T>(&self, column: &str, ids: &[String], value: impl Fn(&str) -> Result<T, &str>) -> Result<Vec<T>> {
        let at = self.columns.iter().position(|name| name == column).ok_or_else(|| {
            let columns = self.columns.join(", ");
            Error::new(format!("no column {column:?}; the table has {columns}")).at(&self.path)
        })?;
        let cell = |id: &String| {
            let row = *self.row_of.get(id).ok_or_else(|| Error::new(format!("no row {id:?}")).at(&self.path))?;
            let (cell, line) = (&self.rows[row][at], self.lines[row]);
            value(cell).map_err(|rule| {
                let text: String = cell.chars().take(40).collect();
                Error::new(format!("line {line}, column {column:?}: {text:?}: {rule}")).at(&self.path)
            })
        };
        ids.iter().map(cell).collect()
    }
}

/// What the csv crate says, without its row counting.
fn told(error: csv::Error) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    Error::new(format!("line {line}: {error}; the table must be CSV"))
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
        let named = |table: &Table| format!("{:?}", table.rows[0][0]);
        return Err(Error::new(format!(
            "no row in common with {}; rows are matched by the first column, which begins with {} here and {} there",
            first.path.display(),
            named(table),
            named(first)
        ))
        .at(&table.path));
    }
    if ids.is_empty() {
        return Err(Error::new("no row is in all of the tables").at(&first.path));
    }
    let shared = |name: &String| others.iter().all(|table| table.columns[1..].contains(name));
    let labels: Vec<String> =
        first.columns[1..].iter().filter(|name| shared(name) && !except.contains(&name.as_str())).cloned().collect();
    if labels.is_empty() {
        let columns = |table: &&Table| format!("{} has {}", table.path.display(), table.columns[1..].join(", "));
        let all = tables.iter().map(columns).collect::<Vec<_>>().join("; ");
        return Err(Error::new(format!("no label is in all of the tables: {all}")));
    }
    let mut notes = Vec::new();
    for table in tables {
        let left: Vec<&str> = table.ids().filter(|id| !(first.row_of.contains_key(*id) && in_all(id))).collect();
        if let Some(some) = left.first() {
            let (left, rows, path) = (left.len(), table.len(), table.path.display());
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

    fn table(text: &str) -> Result<Table> {
        Table::parse(text.as_bytes(), Path::new("some.csv"))
    }

    fn refusal(text: &[u8]) -> String {
        Table::parse(text, Path::new("some.csv")).unwrap_err().to_string()
    }

    #[test]
    fn marks_line_ends_quotes_and_spaces_are_read() {
        let table = table("\u{feff}image,\"Edema, mild\", b\r\n\"x,1\",1.0,\r\n\r\ny , -1,0\r\n").unwrap();
        assert_eq!(table.columns, ["image", "Edema, mild", "b"]);
        let ids: Vec<String> = table.ids().map(String::from).collect();
        assert_eq!(ids, ["x,1", "y"]);
        assert_eq!(table.labels("Edema, mild", &ids).unwrap(), [Some(true), None]);
        assert_eq!(table.labels("b", &ids).unwrap(), [None, Some(false)]);
        assert_eq!(table.numbers("Edema, mild", &ids).unwrap(), [1.0, -1.0]);
    }

    #[test]
    fn what_is_wrong_is_named_by_file_line_and_column() {
        for (text, says) in [
            ("", "empty"),
            ("\u{feff}", "empty"),
            ("image,a\n", "no rows"),
            ("image,a,b\nx,1,2\ny,3\n", "line 3: 2 fields where the header names 3"),
            ("image,a\nx,1\ny,2\nx,3\n", "line 4, column \"image\": \"x\" is already on line 2"),
            ("image,a,a\nx,1,1\n", "two columns are named \"a\""),
            ("image;a\nx;1\n", "separated by commas"),
            ("image,a\n\"x,1\n", "line 2: 1 fields"),
        ] {
            let said = refusal(text.as_bytes());
            assert!(said.starts_with("some.csv: ") && said.contains(says), "{text:?}: {said}");
            assert_eq!(said.lines().count(), 1);
        }
        assert!(refusal(b"image,a\nx,1\n\xff\xfe,2\n").contains("line 3: not UTF-8"));
        assert!(Table::open(Path::new("/nowhere.csv")).unwrap_err().to_string().starts_with("/nowhere.csv: "));
        let table = table("image,a\nx,0.5\ny,nan\nz,\n").unwrap();
        let ids = ["x", "y", "z"].map(String::from);
        let said = table.labels("a", &ids).unwrap_err().to_string();
        assert!(said.contains("line 2, column \"a\": \"0.5\": a label is 1, 0"), "{said}");
        assert!(table.numbers("a", &ids).unwrap_err().to_string().contains("line 3, column \"a\": \"nan\""));
        assert!(table.numbers("a", &ids[2..]).unwrap_err().to_string().contains("line 4"));
        assert!(table.numbers("b", &ids).unwrap_err().to_string().contains("no column \"b\"; the table has image, a"));
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
        assert_eq!(table.columns, ["image", "a, b", "c"]);
        assert_eq!([table.numbers("a, b", &ids).unwrap(), table.numbers("c", &ids).unwrap()], scores);
    }
}
