//! How a model's weights are held for products: read where they lie, packed in memory, or packed in a file.

use std::sync::Arc;

use super::Pipeline;
use crate::buffer::FileBytes;
use crate::layout::Dims;
use crate::models::{Held, NetworkConfig, Planned, Planning};
use crate::ops::matmul::keeps;
use crate::plan::PackedFiles;
use crate::tensor::Tensor;

/// How weights are held.
#[derive(Default)]
pub struct Holding {
    planning: Planning,
    pub(super) packed: Arc<PackedFiles>,
    /// Whether a device computes, which takes all images at once.
    pub(super) on_device: bool,
}

impl Holding {
    /// Files of packed weights that are mapped.
    pub fn files(&self) -> impl Iterator<Item = &Arc<FileBytes>> {
        self.packed.files()
    }
}

impl Pipeline {
    /// Has the weights held so; what there is to say of it comes back. Where packed weights cannot be kept they are packed in memory.
    pub fn hold(&mut self, held: Held) -> Option<String> {
        let planning = match held {
            Held::Auto => Planning::Later,
            Held::Lean => Planning::Never,
            Held::Fast | Held::Cached => Planning::AtOnce,
        };
        (self.holding.planning, self.holding.packed) = (planning, Arc::default());
        if matches!(held, Held::Lean | Held::Fast) {
            return None;
        }
        let mut packed = PackedFiles::open(&self.origin.files);
        if held == Held::Auto && packed.is_empty() {
            return None;
        }
        let matrices = self.matrices();
        let holds = |packed: &PackedFiles| !matrices.is_empty() && matrices.iter().all(|matrix| packed.holds(matrix));
        let mut said = None;
        if held == Held::Cached && !holds(&packed) {
            let written = PackedFiles::write(&self.origin.files, &matrices);
            said = Some(match written {
                Ok(paths) if paths.is_empty() => "packed weights: none that can be kept in a file".to_owned(),
                Ok(paths) => {
                    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                    format!("packed weights: written to {}", paths.join(", "))
                }
                Err(error) => format!("packed weights: in memory ({error})"),
            });
            packed = PackedFiles::open(&self.origin.files);
        }
        if holds(&packed) {
            let how = || {
                let files: Vec<String> = packed.files().map(|file| file.path().display().to_string()).collect();
                format!("packed weights: mapped ({})", files.join(", "))
            };
            said = said.or_else(|| Some(how()));
            (self.holding.planning, self.holding.packed) = (Planning::AtOnce, Arc::new(packed));
        }
        said
    }

    /// The network for inference, its weights held as was asked.
    pub fn planned(&self) -> Planned<'_> {
        let planned = Planned::with(&self.network, self.holding.planning, self.holding.packed.clone());
        if self.holding.on_device { planned.whole() } else { planned }
    }

    /// Those that are multiplied with and can be kept packed.
    fn matrices(&self) -> Vec<Tensor> {
        let (config, p) = (NetworkConfig::of(&self.network), &self.preprocess);
        let pixels = config.vision().map(|_| Dims::new(&[1, p.channels, p.crop, p.crop]));
        let texts = config.text().map(|text| Dims::new(&[1, text.max_length()]));
        let matrices = Planned::matrices(&self.network, pixels, texts);
        matrices.into_iter().filter(|x| keeps(x).is_some() && x.buffer().is_mapped()).collect()
    }
}
