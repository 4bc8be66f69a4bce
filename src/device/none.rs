//! A build without devices beside the CPU.

use super::Activity;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A device that there is none of in this build.
#[derive(Clone, Debug)]
pub enum Gpu {}

/// Bytes on it.
pub(crate) enum Mirrored {}

/// The devices of this machine: none are looked for.
///
/// # Errors
/// Always.
pub fn found() -> Result<Vec<(String, serde_json::Value)>> {
    Err(Error::new("built without the feature vulkan"))
}

/// Runs `f`.
///
/// # Errors
/// Those of `f`.
pub fn caught<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    f()
}

/// Nothing lives elsewhere.
pub(crate) fn bring(_: &[&Tensor]) {}

impl Gpu {
    /// # Errors
    /// Always; `None` where it does not matter.
    pub fn open(_: &str) -> Result<Self, (bool, Error)> {
        Err((true, Error::new("built without the feature vulkan")))
    }

    /// What `--device` opens it by.
    pub fn name(&self) -> String {
        match *self {}
    }

    /// In one line.
    pub fn describe(&self) -> String {
        match *self {}
    }

    /// Refuses what it does not hold.
    ///
    /// # Errors
    /// With the numbers.
    pub fn fits(&self, _: u64, _: &str, _: &str) -> Result<()> {
        match *self {}
    }

    /// What is known of its cooperative matrices.
    pub fn matrices(&self) -> Vec<String> {
        match *self {}
    }

    /// What ran on the CPU instead, and how often.
    pub fn fallbacks(&self) -> Vec<(String, u64)> {
        match *self {}
    }

    /// What it was asked so far.
    pub fn activity(&self) -> Activity {
        match *self {}
    }

    /// Waits for everything that was asked for.
    pub fn wait(&self) {
        match *self {}
    }

    pub(crate) fn fallen_back(&self, _: String, _: Tensor) -> Tensor {
        match *self {}
    }

    pub(crate) fn take(&self, _: &Tensor) -> Tensor {
        match *self {}
    }

    pub(crate) fn copied(&self, _: &Tensor) -> Option<Tensor> {
        match *self {}
    }

    pub(crate) fn cast(&self, _: &Tensor, _: DType) -> Option<Tensor> {
        match *self {}
    }
}

impl Mirrored {
    pub fn device(&self) -> &Gpu {
        match *self {}
    }

    pub fn len(&self) -> usize {
        match *self {}
    }

    pub fn bytes(&self) -> &[u8] {
        match *self {}
    }

    pub fn get_mut<T: Element>(&mut self) -> &mut [T] {
        match *self {}
    }
}
