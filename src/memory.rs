//! What a command will take of this machine's memory: told before it is taken, refused where it cannot be had.

use serde::Serialize;

use crate::device::Gpu;
use crate::error::{Error, Result};
use crate::process;

/// What is taken at most, in bytes, part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// What the process has already when it is asked, and what of the program comes to memory later.
    pub process: u64,
    /// Weights that are mapped, and will be read; all that live on a device.
    pub weights: u64,
    /// Tensors that are computed, with those that the pool keeps for the next ones: activations; of a run parameters, gradients, moments
    /// and average too.
    pub tensors: u64,
    /// Batches that are loaded ahead.
    pub loader: u64,
    /// Pictures that are being decoded, and that are kept for the next epoch.
    pub pictures: u64,
    /// What stands beside the tensors for a while: a file as it is written, the charts of a report, weights that a run packs to validate.
    pub aside: u64,
    /// The largest picture that was looked at, where some were.
    #[serde(skip)]
    pub largest: Option<String>,
}

impl Estimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.process + self.weights + self.tensors + self.loader + self.pictures + self.aside
    }

    /// With what comes after it is done, whose weights are mapped beside those of this.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        Self {
            process: self.process.max(next.process),
            weights: self.weights + next.weights,
            tensors: self.tensors.max(next.tensors),
            loader: self.loader.max(next.loader),
            pictures: self.pictures.max(next.pictures),
            aside: self.aside.max(next.aside),
            largest: if next.pictures > self.pictures { next.largest.clone() } else { self.largest.clone() },
        }
    }

    /// In words; with `gpu` as the place of weights and tensors.
    pub fn describe(&self, gpu: Option<&Gpu>) -> String {
        let place = gpu.map(|gpu| format!("; weights and tensors on {}", gpu.name())).unwrap_or_default();
        format!(
            "memory: {} at most, of which {}, program and tables {}{place}",
            mib(self.total()),
            self.parts(),
            mib(self.process)
        )
    }

    fn parts(&self) -> String {
        let parts = [
            ("weights", self.weights),
            ("tensors", self.tensors),
            ("what is written or packed", self.aside),
            ("batches loaded ahead", self.loader),
            ("pictures", self.pictures),
        ];
        let some = parts.iter().filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| format!("{name} {}", mib(*bytes)));
        some.collect::<Vec<_>>().join(", ")
    }

    /// Refuses what this machine cannot hold; with `gpu`, where weights and tensors live, also those that it cannot. There kernels take some
    /// more, for as long as they compute, and where they find none the command ends with an error of its own.
    ///
    /// # Errors
    /// With the numbers, and `remedy`: what takes less than `what` would.
    pub fn fits(&self, gpu: Option<&Gpu>, what: &str, remedy: &str) -> Result<()> {
        if let Some(gpu) = gpu {
            gpu.fits(self.weights + self.tensors, what, remedy)?;
            return Self { weights: 0, tensors: 0, ..self.clone() }.fits(None, what, remedy);
        }
        let Some(limit) = process::limit().filter(|limit| self.total() > limit.bytes) else { return Ok(()) };
        let (total, free) = (mib(self.total()), mib(limit.bytes));
        // Without the pictures it would fit.
        let largest = self.largest.as_ref().filter(|_| self.total() - self.pictures <= limit.bytes);
        let largest = largest.map_or_else(String::new, |largest| format!(", of which the largest is {largest}"));
        Err(Error::new(format!(
            "{what} would take {total}, but {} {free} ({}{largest}). {remedy}",
            limit.by,
            self.parts()
        )))
    }
}

/// Refuses so many bytes more than the process has, where this machine does not have them.
///
/// # Errors
/// With the numbers.
pub fn room(bytes: u64, what: &str) -> Result<()> {
    let process = process::resident().unwrap_or(0);
    Estimate { process, weights: bytes, ..Estimate::default() }.fits(
        None,
        what,
        "A model in fewer bits takes less (tier convert --dtype)",
    )
}

/// Bytes for people.
pub fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10_240.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let parts =
            Estimate { process: 1, weights: 5, tensors: 1 << 60, loader: 2, pictures: 3, aside: 4, largest: None };
        assert_eq!((parts.total(), mib(3 << 20), mib(40 << 30)), ((1 << 60) + 15, "3 MiB".into(), "40.0 GiB".into()));
        if process::limit().is_some() {
            let error = parts.fits(None, "all this", "Take less").unwrap_err().to_string();
            assert!(
                error.contains("all this would take 1073741824.0 GiB, but ") && error.ends_with(". Take less"),
                "{error}"
            );
        }
        let named = Estimate { largest: Some("a.png".to_owned()), ..parts };
        let large = Estimate { tensors: 3, pictures: 1 << 60, ..named.clone() };
        if process::limit().is_some() {
            let error = |parts: &Estimate| parts.fits(None, "all this", "Take less").unwrap_err().to_string();
            assert!(error(&large).contains(", of which the largest is a.png). Take less"), "{}", error(&large));
            assert!(!error(&named).contains("a.png"), "{}", error(&named));
        }
        let other = Estimate { largest: Some("b.png".to_owned()), ..large.clone() };
        assert_eq!(named.then(&large).largest, named.largest);
        assert_eq!(
            (named.then(&other).largest, large.then(&other).largest),
            (Some("b.png".into()), Some("a.png".into()))
        );
        Estimate { tensors: 1, ..named }.fits(None, "", "").unwrap();
    }
}
