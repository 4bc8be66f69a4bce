//! The rows that a run trains on and is validated by.

use std::collections::BTreeMap;
use std::path::Path;

use kernels_cpu::hash::Fnv;

use super::{Config, Objective, Targets};
use crate::data::{Boxes, Labels, Pairs, Prompts, Row, Split};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::{files, image};

/// The tables of a run.
pub(super) struct Tables {
    pub train: Vec<Row>,
    pub val: Vec<Row>,
    pub labels: Option<Labels>,
    pub prompts: Option<Prompts>,
    pub boxes: Option<Boxes>,
    /// What was left out or drawn, for the person at the terminal.
    pub notes: Vec<String>,
    /// Changes when a row's image, text, split or label does, or a prompt or box.
    pub fingerprint: u64,
    /// Which texts are equal: a number per distinct training text.
    groups: BTreeMap<String, i64>,
    targets: Targets,
}

impl Tables {
    pub fn open(config: &Config) -> Result<Self> {
        let pairs = Pairs::open(&config.data.pairs, config.seed)?;
        let labels = Labels::choose(&pairs, config.data.labels.as_deref(), config.data.labels_from.as_deref())?;
        let prompts = config.data.prompts.as_deref().map(Prompts::open).transpose()?;
        let boxes = config.data.boxes.as_deref().map(Boxes::open).transpose()?;
        let mut notes = pairs.notes.clone();
        let usable = |row: &&Row| match config.objective {
            Objective::Clip => !row.text.trim().is_empty(),
            Objective::Supervised => {
                labels.as_ref().and_then(|l| l.of.get(&row.image)).is_some_and(|l| l.iter().any(Option::is_some))
            }
        };
        let train: Vec<Row> = pairs.split(Split::Train).filter(usable).cloned().collect();
        let left_out = pairs.split(Split::Train).count() - train.len();
        if left_out > 0 {
            let why = if config.objective == Objective::Clip { "their text is blank" } else { "no label is known" };
            notes.push(format!("{left_out} training rows are left out: {why}"));
        }
        let val: Vec<Row> = pairs.split(Split::Val).cloned().collect();
        if let (Some(boxes), Some(prompts)) = (&boxes, &prompts) {
            notes.extend(boxes.strangers(&pairs, labels.as_ref(), prompts));
            // Now, not when the run has ended and is judged by them.
            for row in val.iter().filter(|row| boxes.found(&row.image).is_some()) {
                let size = image::size(row.path()).map_err(|e| Pairs::told(&pairs.path, &row.image, &e))?;
                boxes.check(&row.image, size)?;
            }
        }
        if let Some(labels) = labels.as_ref().filter(|_| prompts.is_some() || config.objective == Objective::Supervised)
        {
            notes.extend(labels.unmatched(&pairs, val.iter()));
            let bare = !val.is_empty() && !val.iter().any(|row| labels.of.contains_key(&row.image));
            if bare && config.objective == Objective::Clip {
                notes.push("no validation row has labels: the best epoch is chosen by the validation loss".to_owned());
            }
        }
        if config.objective == Objective::Supervised && train.is_empty() {
            let message =
                format!("none of the {left_out} training rows has a known label; give 1 or 0 where it is known");
            return Err(Error::new(message).at(config.data.labels.as_ref().unwrap_or(&config.data.pairs)));
        }
        if train.len() < config.train.batch.max(2) {
            return Err(Error::new(format!(
                "{} training rows, fewer than train.batch = {}: lower it or add rows",
                train.len(),
                config.train.batch
            ))
            .at(&config.data.pairs));
        }
        let mut groups = BTreeMap::new();
        for row in &train {
            let next = groups.len() as i64;
            groups.entry(row.text.trim().to_owned()).or_insert(next);
        }
        if config.train.targets == Targets::Pairs
            && config.objective == Objective::Clip
            && groups.len() * 2 < train.len()
        {
            notes.push(format!(
                "only {} distinct texts in {} training rows: train.targets = \"same-text\" counts equal texts as an image's own",
                groups.len(),
                train.len()
            ));
        }
        let fingerprint = fingerprint(&pairs.rows, labels.as_ref(), prompts.as_ref(), boxes.as_ref());
        Ok(Self { train, val, labels, prompts, boxes, notes, fingerprint, groups, targets: config.train.targets })
    }

    /// Which rows of a batch count as each other's texts: i64 `[n]`.
    pub fn groups(&self, rows: &[&Row], numbers: &[usize]) -> Tensor {
        let groups: Vec<i64> = match self.targets {
            Targets::Pairs => numbers.iter().map(|&i| i as i64).collect(),
            // A text that is not in training (validation) stands alone.
            Targets::SameText => rows
                .iter()
                .zip(numbers)
                .map(|(row, &i)| self.groups.get(row.text.trim()).copied().unwrap_or(-1 - i as i64))
                .collect(),
        };
        Tensor::from_slice(&groups, [groups.len()])
    }

    /// Targets f32 and known u8 of a batch, [n, labels] each.
    pub fn targets(&self, rows: &[&Row]) -> Option<[Tensor; 2]> {
        let labels = self.labels.as_ref()?;
        let (mut targets, mut known) = (Vec::new(), Vec::new());
        for row in rows {
            let values = labels.of.get(&row.image);
            for k in 0..labels.names.len() {
                let value = values.and_then(|v| v[k]);
                targets.push(f32::from(u8::from(value == Some(true))));
                known.push(u8::from(value.is_some()));
            }
        }
        let dims = [rows.len(), labels.names.len()];
        Some([Tensor::from_slice(&targets, dims), Tensor::from_slice(&known, dims)])
    }

    /// The error, which names the row too where it is about a row's picture.
    pub fn told(&self, pairs: &Path, error: Error) -> Error {
        let of_it = |row: &&Row| error.path() == Some(&row.path());
        match self.train.iter().chain(&self.val).find(of_it) {
            Some(row) => Pairs::told(pairs, &row.image, &error),
            None => error,
        }
    }

    /// Writes which row is in which split.
    pub fn write_splits(&self, path: &Path) -> Result<()> {
        let mut text = String::from("image,split\n");
        for (rows, split) in [(&self.train, "train"), (&self.val, "val")] {
            for row in rows {
                text.push_str(&format!("\"{}\",{split}\n", row.image.replace('"', "\"\"")));
            }
        }
        files::write_atomic(path, text.as_bytes())
    }
}

fn fingerprint(rows: &[Row], labels: Option<&Labels>, prompts: Option<&Prompts>, boxes: Option<&Boxes>) -> u64 {
    let mut print = Fnv::default();
    // Strings with their ends.
    let mut add = |text: &str| print = print.with(text.as_bytes()).with(&[0xff]);
    for row in rows {
        add(&row.image);
        add(&row.text);
        add(&format!("{:?}", row.split));
        if let Some(values) = labels.and_then(|l| l.of.get(&row.image)) {
            add(&format!("{values:?}"));
        }
    }
    add(&format!("{:?}", (labels.map(|l| &l.names), prompts, boxes)));
    print.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Annotation, Prompt};

    #[test]
    fn every_table_is_in_the_fingerprint() {
        let row = |image: &str, text: &str, split| Row {
            image: image.to_owned(),
            folder: Path::new("").into(),
            text: text.to_owned(),
            split,
            patient: None,
            more: Default::default(),
        };
        let rows = [row("a", "x", Split::Train), row("b", "y", Split::Val)];
        let labels = |name: &str, value| Labels {
            names: vec![name.to_owned()],
            of: BTreeMap::from([("a".to_owned(), vec![value])]),
        };
        let prompts = |label: &str, positive: &[&str], negative: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect();
            Prompts(vec![Prompt { label: label.to_owned(), positive: texts(positive), negative: texts(negative) }])
        };
        let (known, asked) = (labels("l", Some(true)), prompts("l", &["p", "q"], &["n"]));
        let of =
            |rows: &[Row], labels: &Labels, prompts: &Prompts| fingerprint(rows, Some(labels), Some(prompts), None);
        let mut all = vec![of(&rows, &known, &asked), fingerprint(&rows, None, Some(&asked), None)];
        all.extend([fingerprint(&rows, Some(&known), None, None), fingerprint(&rows, None, None, None)]);
        let others = [("c", "x", Split::Train), ("a", "z", Split::Train), ("a", "x", Split::Test)];
        all.extend(others.map(|(image, text, split)| of(&[row(image, text, split), rows[1].clone()], &known, &asked)));
        all.extend(
            [labels("m", Some(true)), labels("l", Some(false)), labels("l", None)].map(|l| of(&rows, &l, &asked)),
        );
        for (label, positive, negative) in [
            ("m", &["p", "q"][..], &["n"][..]),
            ("l", &["p"], &["q", "n"]),
            ("l", &["q", "p"], &["n"]),
            ("l", &["p", "q"], &[]),
            ("l", &["p\", \"q"], &["n"]),
        ] {
            all.push(of(&rows, &known, &prompts(label, positive, negative)));
        }
        for bbox in [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0]] {
            let of = BTreeMap::from([("a".to_owned(), vec![Annotation { label: "l".into(), bbox }])]);
            let boxes = Boxes { of, ..Boxes::default() };
            all.push(fingerprint(&rows, Some(&known), Some(&asked), Some(&boxes)));
        }
        let distinct: std::collections::BTreeSet<u64> = all.iter().copied().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(of(&rows, &known, &asked), all[0]);
    }
}
