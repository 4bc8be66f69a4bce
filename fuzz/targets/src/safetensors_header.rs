//! Files of weights that are taken for safetensors, and indices of several.

use tiergrad::formats::Weights;

use crate::bounds::{bounded, file, of_file};

pub(super) fn run(data: &[u8]) {
    let path = file("model.safetensors", data);
    let index = file("model.safetensors.index.json", data);
    bounded(of_file(data), || {
        for map in [true, false] {
            if let Ok(weights) = Weights::open(&path, map) {
                for (name, tensor) in weights.iter() {
                    assert_eq!(weights.meta(name), Some(tensor.meta()));
                    std::hint::black_box(tensor.buffer().bytes().iter().fold(0, |a, b| a ^ b));
                }
            }
        }
        let _ = Weights::open_index(&index, true);
    });
}
