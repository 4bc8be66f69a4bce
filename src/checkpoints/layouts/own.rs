//! Model folders that this program writes.

use super::{Evidence, Layout, Pixels};
use crate::checkpoints::sizes::Shapes;
use crate::error::{At, Error, Result};
use crate::models::NetworkConfig;

pub(super) const LAYOUT: Layout = Layout {
    name: "tiergrad",
    assumed: super::nothing,
    pixels: Pixels::Own,
    fits: |e| e.config.text("model_type").is_ok_and(|kind| kind.is_some_and(|kind| kind.starts_with("tiergrad"))),
    names: || "* -> *".to_owned(),
    config,
};

fn config(_: &Shapes, evidence: &Evidence) -> Result<NetworkConfig> {
    let wrong = |e| Error::new(format!("not what a model folder has there: {e}"));
    serde_json::from_value(evidence.config.value().clone()).map_err(wrong).at(evidence.config.path())
}
