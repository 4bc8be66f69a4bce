//! pairs.csv: images and their texts, split by patient.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::table::Table;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::spelling::nearest;

/// What a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training.
    Train,
    /// Choosing: checkpoints, thresholds, options.
    Val,
    /// Judging.
    Test,
}

impl Split {
    /// Every split.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One image with its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// As the table names it: the key that labels and boxes use too.
    pub image: String,
    /// The folder that the name is relative to.
    pub folder: Arc<Path>,
    /// The text; blank where there is none.
    pub text: String,
    /// What the row is for.
    pub split: Split,
    /// Who it is, where the table says.
    pub patient: Option<String>,
    /// The table's other columns.
    pub more: More,
}

/// Values of one row in columns that have no meaning of their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct More {
    names: Arc<[String]>,
    values: Box<[Box<str>]>,
}

impl More {
    /// The value in a column, if the table has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.names.iter().position(|n| n == name)?;
        self.values.get(at).map(|value| &**value)
    }

    /// The columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Row {
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.image)
    }

    /// What is resampled together: the patient, or the image alone where the table names none.
    pub fn group(&self) -> &str {
        self.patient.as_deref().unwrap_or(&self.image)
    }
}

/// A table of pairs.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// The table.
    pub path: PathBuf,
    /// Its rows, in its order.
    pub rows: Vec<Row>,
    /// What was drawn or will be left out, one line each.
    pub notes: Vec<String>,
}

/// Share of the training patients that is drawn for validation where no row is.
const VAL_SHARE: f64 = 0.1;
/// Names the stream of that draw.
const VAL_STREAM: u64 = u64::from_be_bytes(*b"val rows");

impl Pairs {
    /// Reads a table, checks that its files exist and that no patient (or image) is in two splits, and draws validation rows by patient
    /// from the training rows where there are none.
    ///
    /// # Errors
    /// Names the line and column, the patient, or up to five missing files.
    pub fn open(path: impl AsRef<Path>, seed: u64) -> Result<Self> {
        let table = Table::open(path)?;
        let (image, text) = (table.column("image")?, table.column("text")?);
        let (split, patient) = (table.find("split"), table.find("patient_id"));
        let known = [Some(image), Some(text), split, patient];
        let more: Vec<usize> = (0..table.columns().len()).filter(|&i| !known.contains(&Some(i))).collect();
        let names: Arc<[String]> = more.iter().map(|&i| table.columns()[i].clone()).collect();
        let folder: Arc<Path> = table.path().parent().unwrap_or(Path::new("")).into();
        if table.is_empty() {
            return Err(Error::new("no rows below the header; add one per image").at(table.path()));
        }
        let mut rows = Vec::with_capacity(table.len());
        for record in table.rows() {
            let name = record.get(image);
            if name.is_empty() {
                return Err(record.error(image, "blank; name the image's file"));
            }
            let split = match split {
                None => Split::Train,
                Some(column) => {
                    let value = record.get(column);
                    Split::ALL.into_iter().find(|split| split.name() == value).ok_or_else(|| {
                        let near = nearest(value, &["train", "val", "test"])
                            .map_or(String::new(), |near| format!(" ({near:?}?)"));
                        record.error(column, format!("{value:?} is no split; write train, val or test{near}"))
                    })?
                }
            };
            rows.push(Row {
                image: name.to_owned(),
                folder: folder.clone(),
                text: record.get(text).to_owned(),
                split,
                patient: patient.map(|column| record.get(column)).filter(|id| !id.is_empty()).map(str::to_owned),
                more: More {
                    names: names.clone(),
                    values: more.iter().map(|&column| record.get(column).into()).collect(),
                },
            });
        }
        let mut pairs = Self { path: table.path().to_path_buf(), rows, notes: Vec::new() };
        drop(table);
        pairs.check_files()?;
        pairs.check_splits()?;
        pairs.draw_val(seed);
        pairs.count_blank();
        Ok(pairs)
    }

    /// The error about the picture of a row of a table, which names the row's line too.
    pub(crate) fn told(path: &Path, image: &str, error: &Error) -> Error {
        let told = |table: &Table| {
            let column = table.column("image").ok()?;
            let row = table.rows().find(|row| row.get(column) == image)?;
            Some(row.error(column, error))
        };
        Table::open(path).ok().as_ref().and_then(told).unwrap_or_else(|| Error::new(error.to_string()).at(path))
    }

    /// The rows of one split, in the table's order.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.split == split)
    }

    fn check_files(&self) -> Result<()> {
        let mut missing = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for row in self.rows.iter().filter(|row| seen.insert(row.image.as_str())) {
            if !row.path().is_file() {
                missing.insert(row.image.as_str());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let named = missing.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let rest = if missing.len() > 5 { ", ..." } else { "" };
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Err(Error::new(format!(
            "{} of its {} image files are missing: {named}{rest}; names are relative to {}",
            missing.len(),
            seen.len(),
            folder.display()
        ))
        .at(&self.path))
    }

    fn check_splits(&self) -> Result<()> {
        let patients = self.rows.iter().filter_map(|row| Some((row.patient.as_deref()?, row.split)));
        let images = self.rows.iter().map(|row| (row.image.as_str(), row.split));
        self.check_apart("patient", patients)?;
        self.check_apart("image", images)
    }

    /// Whether everyone is in one split alone.
    fn check_apart<'a>(&self, what: &str, all: impl Iterator<Item = (&'a str, Split)>) -> Result<()> {
        let mut first: HashMap<&str, Split> = HashMap::new();
        for (name, split) in all {
            let other = *first.entry(name).or_insert(split);
            if other != split {
                return Err(Error::new(format!(
                    "{what} {name:?} is in both {other} and {split}; move all its rows to one split"
                ))
                .at(&self.path));
            }
        }
        Ok(())
    }

    fn draw_val(&mut self, seed: u64) {
        // Rows without a patient stay together by image.
        let key = |row: &Row| match &row.patient {
            Some(id) => (0, id.clone()),
            None => (1, row.image.clone()),
        };
        let train: BTreeSet<_> = self.split(Split::Train).map(key).collect();
        if train.is_empty() || self.split(Split::Val).next().is_some() {
            return;
        }
        let drawn = ((train.len() as f64 * VAL_SHARE).round() as usize).max(1);
        if drawn == train.len() {
            self.notes.push("no val rows, and one patient alone cannot be split: nothing to validate on".to_owned());
            return;
        }
        let mut order: Vec<_> = train.iter().collect();
        Rng::new(seed, VAL_STREAM).shuffle(&mut order);
        let chosen: BTreeSet<_> = order.into_iter().take(drawn).collect();
        let rows = self.rows.iter_mut().filter(|row| row.split == Split::Train && chosen.contains(&key(row)));
        let moved = rows.map(|row| row.split = Split::Val).count();
        let whom =
            if self.rows.iter().any(|row| row.patient.is_some()) { "patients" } else { "images (no patient_id)" };
        self.notes.push(format!(
            "no val rows: {drawn} of {} training {whom}, {moved} rows, were drawn for validation with seed {seed}",
            train.len()
        ));
    }

    fn count_blank(&mut self) {
        let blank = self.rows.iter().filter(|row| row.text.is_empty()).count();
        if blank > 0 {
            let of = self.rows.len();
            self.notes.push(format!(
                "{blank} of {of} rows have no text: left out of contrastive training, kept for evaluation by label"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::folder;
    use super::*;

    fn open(table: &str, files: &[&str]) -> Result<Pairs> {
        let mut all: Vec<_> = files.iter().map(|&name| (name, "")).collect();
        all.push(("pairs.csv", table));
        let folder = folder(&all);
        Pairs::open(folder.path().join("pairs.csv"), 1)
    }

    fn error(table: &str) -> String {
        open(table, &["a", "b"]).unwrap_err().to_string()
    }

    #[test]
    fn rows_keep_what_the_table_says() {
        let table =
            "text,image,view,split,patient_id\n\"one, two\",a,PA,train,p\n ,b,,test,\nx,a,AP,train,p\ny,c,,val,q\n";
        let pairs = open(table, &["a", "b", "c"]).unwrap();
        let row = &pairs.rows[0];
        assert_eq!((row.image.as_str(), row.text.as_str(), row.split), ("a", "one, two", Split::Train));
        assert_eq!((row.patient.as_deref(), row.more.get("view"), row.more.names().len()), (Some("p"), Some("PA"), 1));
        assert!(row.path().ends_with("a") && row.path().parent() == pairs.path.parent());
        assert_eq!((pairs.rows[1].text.as_str(), pairs.rows[1].patient.as_deref()), ("", None));
        assert_eq!(pairs.split(Split::Train).count(), 2);
        assert_eq!(pairs.notes.len(), 1);
        assert!(pairs.notes[0].starts_with("1 of 4 rows have no text"));
    }

    #[test]
    fn val_is_drawn_by_patient_and_by_seed() {
        let names: Vec<String> = (0..60).map(|i| format!("i{i}")).collect();
        let mut table = "image,text,patient_id\n".to_owned();
        names.iter().enumerate().for_each(|(i, name)| table += &format!("{name},t,{}\n", i / 3));
        let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        files.push(("pairs.csv", &table));
        let folder = folder(&files);
        let val =
            |seed| {
                let pairs = Pairs::open(folder.path().join("pairs.csv"), seed).unwrap();
                assert!(pairs.notes[0].contains(&format!(
                    "2 of 20 training patients, 6 rows, were drawn for validation with seed {seed}"
                )));
                pairs.split(Split::Val).map(|row| row.patient.clone().unwrap()).collect::<Vec<_>>()
            };
        let drawn = val(1);
        assert_eq!((drawn.len(), drawn.iter().collect::<BTreeSet<_>>().len()), (6, 2));
        assert_eq!(drawn, val(1));
        assert!((2..9).any(|seed| val(seed) != drawn));
        let alone = open("image,text\na,t\na,u\n", &["a"]).unwrap();
        assert!(alone.split(Split::Val).next().is_none() && alone.notes[0].contains("nothing to validate on"));
    }

    #[test]
    fn complaints_name_what_is_wrong() {
        assert!(error("image,caption\na,t\n").contains("no column \"text\""));
        assert!(error("image,text\n").contains("no rows"));
        assert!(error("image,text\n,t\n").contains("line 2, column \"image\": blank"));
        assert!(
            error("image,text,split\na,t,train\nb,t,tset\n")
                .contains("line 3, column \"split\": \"tset\" is no split; write train, val or test (\"test\"?)")
        );
        let leak = error("image,text,split,patient_id\na,t,train,p 7\nb,t,test,p 7\n");
        assert!(leak.contains("pairs.csv: patient \"p 7\" is in both train and test"), "{leak}");
        assert!(error("image,text,split\na,t,train\na,u,test\n").contains("image \"a\" is in both train and test"));
        let missing = error("image,text\na,t\nm1,t\nm2,t\nm3,t\nm4,t\nm5,t\nm6,t\nm6,u\n");
        assert!(
            missing.contains("6 of its 7 image files are missing: m1, m2, m3, m4, m5, ...; names are relative to"),
            "{missing}"
        );
    }

    #[test]
    fn a_hundred_thousand_rows_are_read_soon_and_hollow_ones_are_refused() {
        let row = |i: usize| format!("film.png,\"No effusion, row {i}.\",{},p{},PA,{i}\n", "train", i / 3);
        let rows: String = (0..100_000).map(row).collect();
        let started = std::time::Instant::now();
        let pairs = open(&format!("image,text,split,patient_id,view,n\n{rows}"), &["film.png"]).unwrap();
        assert_eq!((pairs.rows.len(), pairs.rows[99_999].more.get("n")), (100_000, Some("99999")));
        assert_eq!(pairs.rows[99_999].text, "No effusion, row 99999.");
        // Far less where nothing else runs; a walk through all rows for each would take minutes.
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
        let hollow = open(&format!("image,text\n{}", "a,b\n".repeat(300_000)), &["a"]).unwrap_err().to_string();
        assert!(hollow.contains("300001 lines in 1200011 bytes"), "{hollow}");
    }
}
