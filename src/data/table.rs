//! UTF-8 CSV with a header, read whole; every complaint names the file, the line and the column.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use csv::{ErrorKind, ReaderBuilder, StringRecord};

use crate::error::{At, Error, Result};
use crate::files::ROOM;
use crate::spelling::nearest;

/// UTF-8's byte order mark.
const MARK: &[u8] = b"\xEF\xBB\xBF";
/// Memory that a row of a table takes in what is made of it, beside its own text.
const ROW: usize = 140;

/// A table with named columns.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    columns: Vec<String>,
    /// The values of all rows, one after the other, and where each ends.
    values: String,
    ends: Vec<u32>,
    /// By row, the line that it begins on, from 1.
    lines: Vec<u32>,
}

/// One row of a table.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    table: &'a Table,
    row: usize,
}

impl Table {
    /// Reads a table. A byte order mark, CRLF and blank lines are accepted.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, has no header, a column twice, a row of another length than the header, a quote that is
    /// not closed at its field's end, or so many and so short rows that they would take more than four times the file and 16 MiB.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, std::fs::read(path).at(path)?).at(path)
    }

    pub(crate) fn parse(path: &Path, text: Vec<u8>) -> Result<Self> {
        let bytes = text.as_slice();
        if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
            return Err(Error::new("is UTF-16; save it as UTF-8"));
        }
        check_room(bytes)?;
        check_quotes(bytes)?;
        // The reader skips a UTF-8 byte order mark by itself.
        let mut reader = ReaderBuilder::new().from_reader(bytes);
        let told = |error| told(bytes, error);
        let columns: Vec<String> = reader.headers().map_err(told)?.iter().map(|name| name.trim().to_owned()).collect();
        if columns.iter().all(String::is_empty) {
            return Err(Error::new("no header; the first line must name the columns"));
        }
        if let Some(twice) =
            columns.iter().enumerate().find_map(|(i, name)| columns[..i].contains(name).then_some(name))
        {
            let line = header_line(bytes);
            return Err(Error::new(format!("line {line} names column {twice:?} twice; rename or remove one")));
        }
        let mut table = Self {
            path: path.to_path_buf(),
            columns,
            values: String::with_capacity(bytes.len()),
            ends: Vec::new(),
            lines: Vec::new(),
        };
        let (mut record, mut line) = (StringRecord::new(), LineCount::new(bytes));
        while reader.read_record(&mut record).map_err(told)? {
            table.lines.push(line.at(record.position()) as u32);
            for value in &record {
                table.values.push_str(value);
                table.ends.push(table.values.len() as u32);
            }
        }
        Ok(table)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the columns, in their order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Position of a column, if the table has it.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Position of a column that must be there.
    ///
    /// # Errors
    /// If it is not; the message names the nearest.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.find(name).ok_or_else(|| {
            let only = if self.columns.len() == 1 { self.columns[0].find([';', '\t']) } else { None };
            let remedy = match (only, nearest(name, &self.columns)) {
                (Some(_), _) => "separate the columns by commas".to_owned(),
                (None, Some(near)) => format!("is {near:?} meant? Rename it"),
                (None, None) => format!("it has {}", self.columns.join(", ")),
            };
            Error::new(format!("no column {name:?}; {remedy}")).at(&self.path)
        })
    }

    /// The rows, in their order.
    pub fn rows(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).map(|row| Record { table: self, row })
    }

    /// The row of that number, from 0.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn row(&self, number: usize) -> Record<'_> {
        assert!(number < self.len(), "row {number} of {}", self.len());
        Record { table: self, row: number }
    }

    /// The number of the row of each value of a column.
    ///
    /// # Errors
    /// If two rows have the same value.
    pub fn index(&self, column: usize) -> Result<BTreeMap<&str, usize>> {
        let mut index = BTreeMap::new();
        for (number, record) in self.rows().enumerate() {
            let value = record.get(column);
            if let Some(first) = index.insert(value, number) {
                let first = self.row(first).line();
                return Err(record.error(column, format!("{value:?} is on line {first} already; keep one of them")));
            }
        }
        Ok(index)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl<'a> Record<'a> {
    /// The value in a column, without surrounding blanks.
    pub fn get(&self, column: usize) -> &'a str {
        let Table { columns, values, ends, .. } = self.table;
        if column >= columns.len() {
            return "";
        }
        // Every row has as many values as the header.
        let at = self.row * columns.len() + column;
        let start = if at == 0 { 0 } else { ends[at - 1] };
        values[start as usize..ends[at] as usize].trim()
    }

    /// The value in a column as a label: 1, 0, or not known (blank or -1).
    ///
    /// # Errors
    /// If it is none of these.
    pub fn label(&self, column: usize) -> Result<Option<bool>> {
        let text = self.get(column);
        match text.parse::<f64>() {
            Ok(1.0) => Ok(Some(true)),
            Ok(0.0) => Ok(Some(false)),
            Ok(-1.0) => Ok(None),
            _ if text.is_empty() => Ok(None),
            _ => Err(self.error(column, format!("{:?} is no label; write 1, 0, or -1 for not known", beginning(text)))),
        }
    }

    /// Line of the file that the row begins on, from 1.
    pub fn line(&self) -> usize {
        self.table.lines[self.row] as usize
    }

    /// An error about the value in a column.
    pub fn error(&self, column: usize, message: impl std::fmt::Display) -> Error {
        let name = self.table.columns.get(column).map_or("", String::as_str);
        Error::new(format!("line {}, column {name:?}: {message}", self.line())).at(&self.table.path)
    }
}

/// Counts lines up to one place after the other. The reader's own count of lines stands before the line ends that it has yet to
/// skip; its count of bytes can be relied on.
struct LineCount<'a> {
    text: &'a [u8],
    /// Up to where line ends are counted.
    counted: usize,
    ends: usize,
}

impl<'a> LineCount<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, counted: 0, ends: 0 }
    }

    /// The line of what follows a place, which is not before the last one that was asked for.
    fn at(&mut self, position: Option<&csv::Position>) -> usize {
        self.at_byte(position.map_or(0, |position| position.byte() as usize))
    }

    fn at_byte(&mut self, byte: usize) -> usize {
        let at = byte.min(self.text.len());
        let skip = self.text[at..].iter().take_while(|&&byte| byte == b'\r' || byte == b'\n').count();
        let ends = |i: &usize| {
            let byte = self.text[*i];
            byte == b'\n' || (byte == b'\r' && self.text.get(i + 1) != Some(&b'\n'))
        };
        self.ends += (self.counted..at + skip).filter(ends).count();
        self.counted = self.counted.max(at + skip);
        self.ends + 1
    }
}

/// The line of one place.
fn line(text: &[u8], position: Option<&csv::Position>) -> usize {
    LineCount::new(text).at(position)
}

/// Whether every quote that opens a field is closed at the field's end: the reader takes what follows for text, to the end of the table
/// if need be, and says nothing.
fn check_quotes(text: &[u8]) -> Result<()> {
    let ends_field = |byte: Option<&u8>| matches!(byte, None | Some(b',' | b'\r' | b'\n'));
    let mut at = if text.starts_with(MARK) { MARK.len() } else { 0 };
    while at < text.len() {
        if text[at] == b'"' {
            let opened = at;
            let quote = |from: usize| text[from..].iter().position(|&byte| byte == b'"').map(|skip| from + skip);
            let wrong = |what: String| {
                let line = LineCount::new(text).at_byte(opened);
                let remedy = "close it at the field's end, and double quotes within the field";
                Err(Error::new(format!("line {line}: the quote that opens a field {what}; {remedy}")))
            };
            at += 1;
            loop {
                at = match quote(at) {
                    Some(closed) => closed + 1,
                    None => return wrong("is not closed".to_owned()),
                };
                if text.get(at) != Some(&b'"') {
                    break;
                }
                at += 1;
            }
            // Blanks are trimmed anyway.
            let blanks = text[at..].iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
            if !ends_field(text.get(at + blanks)) {
                let rest =
                    &text[at..][..text[at..].iter().position(|byte| ends_field(Some(byte))).unwrap_or(text.len() - at)];
                let line = LineCount::new(text).at_byte(at);
                return wrong(format!(
                    "is closed on line {line} before {:?}",
                    beginning(&String::from_utf8_lossy(rest))
                ));
            }
        }
        // Within a field that does not begin with one, quotes are text.
        at += text[at..].iter().take_while(|byte| !ends_field(Some(byte))).count() + 1;
    }
    Ok(())
}

/// Whether a table of this text, and what is made of its rows, fits into four times the text and 16 MiB.
fn check_room(text: &[u8]) -> Result<()> {
    let count = |byte: u8| text.iter().filter(|&&b| b == byte).count();
    let rows = count(b'\n').max(count(b'\r'));
    // Lists grow to twice as long as they must be, and are there twice meanwhile.
    let needs = ROW * rows + 3 * size_of::<u32>() * (count(b',') + rows);
    if needs > 2 * text.len() + ROOM || u32::try_from(text.len()).is_err() {
        let len = text.len();
        return Err(Error::new(format!(
            "{rows} lines in {len} bytes are more, and shorter, than those of a table of images; split it, or check what wrote it"
        )));
    }
    Ok(())
}

/// Line of the header: the first that is not blank.
fn header_line(text: &[u8]) -> usize {
    line(text.strip_prefix(MARK).unwrap_or(text), None)
}

/// A row of CSV, without the end of its line: fields that need it are in quotes.
///
/// # Errors
/// None that a row in memory can have.
pub(crate) fn csv_row<T: AsRef<[u8]>>(fields: impl IntoIterator<Item = T>) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields).map_err(|e| Error::new(e.to_string()))?;
    let bytes = writer.into_inner().map_err(|e| Error::new(e.to_string()))?;
    let line = String::from_utf8_lossy(&bytes);
    Ok(line.strip_suffix('\n').unwrap_or(&line).to_owned())
}

/// As much of a value as a message bears.
pub(crate) fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}

fn told(text: &[u8], error: csv::Error) -> Error {
    let line = line(text, error.position());
    match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => Error::new(format!(
            "line {line} has {len} fields where the header has {expected_len}; put fields with commas in double quotes"
        )),
        ErrorKind::Utf8 { err, .. } => {
            Error::new(format!("line {line}, field {} is not UTF-8; save the table as UTF-8", err.field() + 1))
        }
        _ => Error::new(error.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder with the given files.
    pub(in crate::data) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn parse(text: &[u8]) -> Result<Table> {
        Table::parse(Path::new("t.csv"), text.to_vec())
    }

    #[test]
    fn marks_line_ends_quotes_and_blank_lines() {
        let table = parse(b"\xEF\xBB\xBFimage, text\r\na.png,\"x, \"\"y\"\"\nz\"\r\n\r\nb.png, w \r\n").unwrap();
        assert_eq!(table.columns(), ["image", "text"]);
        let rows: Vec<_> = table.rows().map(|r| (r.line(), r.get(0), r.get(1))).collect();
        assert_eq!(rows, [(2, "a.png", "x, \"y\"\nz"), (5, "b.png", "w")]);
    }

    #[test]
    fn complaints_name_line_column_and_remedy() {
        let error = |text: &[u8]| parse(text).err().unwrap().to_string();
        assert!(error(b"image,text\r\na,b\r\n\r\nc,d,e\r\n").contains("line 4 has 3 fields where the header has 2"));
        assert!(error(b"image,text\na,b\nc,\xFF\n").contains("line 3, field 2 is not UTF-8"));
        assert!(error(b"image,text,image\n").contains("column \"image\" twice"));
        assert!(error(b"").contains("no header"));
        assert!(error(b"\xFF\xFEi\0").contains("UTF-16"));
        let column = |header: &[u8], name| parse(header).unwrap().column(name).unwrap_err().to_string();
        assert_eq!(column(b"Image,caption\n", "image"), "t.csv: no column \"image\"; is \"Image\" meant? Rename it");
        assert!(column(b"images,caption\n", "image").contains("\"images\""));
        assert!(column(b"path,caption\n", "image").contains("it has path, caption"));
        assert!(column(b"image;text\n", "image").contains("by commas"));
    }

    #[test]
    fn a_quote_that_is_not_closed_at_its_fields_end_is_an_error_on_the_line_that_it_opens_on() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        for end in ["\n", "\r\n", "\r"] {
            let of = |lines: &[&str]| lines.join(end);
            // To the end of the table: one field of the last row, or the header's.
            let swallowed =
                of(&["image,text", "", "a.png,\"one", "two\"", "b.png,\"heart", "c.png,lungs", "d.png,bones", ""]);
            assert_eq!(
                error(&swallowed),
                "line 5: the quote that opens a field is not closed; close it at the field's end, and double quotes within the field"
            );
            assert!(error(&of(&["\u{feff}\"image,text", "a.png,one"])).starts_with("line 1: the quote"));
            // Up to the next quote, or with something behind it.
            let shifted = error(&of(&["image,text", "a.png,\"heart", "b.png,\"lungs\"", "c.png,bones"]));
            assert!(
                shifted.starts_with("line 2: the quote that opens a field is closed on line 3 before \"lungs"),
                "{shifted}"
            );
            let behind = error(&of(&["image,text", "a.png,t", "b.png,\"x\"y z"]));
            assert!(
                behind.starts_with("line 3: ") && behind.contains("is closed on line 3 before \"y z\";"),
                "{behind}"
            );
            assert!(error(&of(&["image,text", "a.png,\"x\" \"y\""])).contains("before \" \\\"y\\\"\""));
            // Closed, empty, doubled, followed by blanks; quotes within a field, and at its end.
            let table =
                parse(of(&["image,text", "\"a\",\"\"", "b,\"\"\"x\"\", y\" ", "c\"d,e\"", "\"f\",\"g\""]).as_bytes());
            let table = table.unwrap();
            let rows: Vec<_> = table.rows().map(|row| [row.get(0), row.get(1)]).collect();
            assert_eq!(rows, [["a", ""], ["b", "\"x\", y"], ["c\"d", "e\""], ["f", "g"]]);
        }
    }

    #[test]
    fn lines_are_counted_over_blank_lines_line_ends_and_quoted_breaks() {
        for end in ["\n", "\r\n", "\r"] {
            let lines = ["", "id,text,x", "", "a,\"one", "two\",1", "", "", "b,\"\",-1", "c,,?", "b,,0"];
            let table = parse(format!("\u{feff}{}", lines.join(end)).as_bytes()).unwrap();
            assert_eq!(table.rows().map(|row| row.line()).collect::<Vec<_>>(), [4, 8, 9, 10], "{end:?}");
            let error = table.row(2).label(2).unwrap_err().to_string();
            assert_eq!(error, "t.csv: line 9, column \"x\": \"?\" is no label; write 1, 0, or -1 for not known");
            let error = table.index(0).unwrap_err().to_string();
            assert_eq!(error, "t.csv: line 10, column \"id\": \"b\" is on line 8 already; keep one of them");
            let error = |more: &[&str]| {
                let text = [&lines[..8], more].concat().join(end);
                parse(text.as_bytes()).unwrap_err().to_string()
            };
            assert!(error(&["", "e,f"]).starts_with("line 10 has 2 fields"), "{end:?}: {}", error(&["", "e,f"]));
            assert!(
                parse(format!("{end}{end}a,a{end}").as_bytes()).unwrap_err().to_string().starts_with("line 3 names")
            );
        }
    }
}
