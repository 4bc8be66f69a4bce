//! Tables: pairs, labels, prompts, boxes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergrad::data::{Boxes, Labels, Pairs, Prompts};

fuzz_target!(init: fuzz::start(), |data: &[u8]| {
    let (kind, rest) = fuzz::kind(data);
    let path = fuzz::file("table.csv", rest);
    fuzz::bounded(fuzz::of_file(data), || match kind % 4 {
        0 => {
            if let Ok(pairs) = Pairs::open(&path, 0) {
                let _ = Labels::from_column(&pairs, "finding");
            }
        }
        1 => drop(Labels::open(&path)),
        2 => drop(Prompts::open(&path)),
        _ => drop(Boxes::open(&path)),
    });
});
