//! The run's log: a line of JSON for every step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::validate::Validation;
use crate::error::{At, Error, Result};

/// A number of a record. JSON has none that is not finite: it is written as null.
fn number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// A line of log.jsonl. What is not finite is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimiser steps taken, this one included.
    pub step: u64,
    /// From 1.
    pub epoch: u64,
    /// What is minimised.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Symmetric InfoNCE; the label loss of a supervised run.
    #[serde(deserialize_with = "number")]
    pub loss_clip: f64,
    /// In nats.
    #[serde(deserialize_with = "number")]
    pub patch_entropy: f64,
    /// In nats.
    #[serde(deserialize_with = "number")]
    pub token_entropy: f64,
    /// Learning rate.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// exp(logit_scale).
    #[serde(deserialize_with = "number")]
    pub logit_scale: f64,
    /// Of the epoch that this step ended.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// Training pairs per second of this step, loading included.
    #[serde(deserialize_with = "number")]
    pub items_per_s: f64,
}

pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    pub fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(&path).at(&path)?;
        Ok(Self { path, file })
    }

    /// Cuts it to its first `lines` lines, which it gives: what a killed run wrote after its checkpoint is written again.
    pub fn cut(&mut self, lines: u64) -> Result<Vec<Record>> {
        let mut reader = BufReader::new(File::open(&self.path).at(&self.path)?);
        let (mut records, mut bytes, mut line) = (Vec::new(), 0, String::new());
        for number in 1..=lines {
            line.clear();
            bytes += reader.read_line(&mut line).at(&self.path)? as u64;
            if !line.ends_with('\n') {
                let whole = number - 1;
                let what = format!("{whole} whole lines, but the checkpoint stands after {lines}: the log was cut");
                return Err(Error::new(what).at(&self.path));
            }
            let read = serde_json::from_str(&line);
            records.push(read.map_err(|e| Error::new(format!("line {number}: {e}")).at(&self.path))?);
        }
        self.file.set_len(bytes).at(&self.path)?;
        Ok(records)
    }

    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|e| Error::new(e.to_string()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).at(&self.path)
    }

    /// Waits until all lines are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().at(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_to_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = Log::open(path.clone()).unwrap();
        let all: Vec<Record> = (1..=3).map(|step| Record { step, ..Record::default() }).collect();
        all.iter().for_each(|record| log.write(record).unwrap());
        log.file.write_all(b"{\"step\":4,").unwrap();
        assert!(log.cut(4).unwrap_err().to_string().contains("3 whole lines"));
        let steps = |records: Vec<Record>| records.iter().map(|record| record.step).collect::<Vec<_>>();
        assert_eq!(steps(log.cut(2).unwrap()), [1, 2]);
        // A run that goes on without finite numbers can be resumed.
        log.write(&Record { loss: f64::NAN, grad_norm: f64::INFINITY, ..all[2].clone() }).unwrap();
        let last = log.cut(3).unwrap().pop().unwrap();
        assert!(last.loss.is_nan() && last.grad_norm.is_nan() && last.lr == 0.0);
        log.cut(2).unwrap();
        log.write(&all[2]).unwrap();
        assert_eq!(steps(log.cut(3).unwrap()), [1, 2, 3]);
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 3);
    }
}
