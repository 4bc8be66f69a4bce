//! Files of weights that are taken for safetensors, and indices of several.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergrad::formats::Weights;

fuzz_target!(init: fuzz::start(), |data: &[u8]| {
    let path = fuzz::file("model.safetensors", data);
    let index = fuzz::file("model.safetensors.index.json", data);
    fuzz::bounded(fuzz::of_file(data), || {
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
});
