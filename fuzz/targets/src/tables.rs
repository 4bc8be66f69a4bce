//! Tables: pairs, labels, prompts, boxes.

use tiergrad::data::{Boxes, Labels, Pairs, Prompts};

use crate::bounds::{bounded, file, kind, of_file};

pub(super) fn run(data: &[u8]) {
    let (kind, rest) = kind(data);
    let path = file("table.csv", rest);
    bounded(of_file(data), || match kind % 4 {
        0 => {
            if let Ok(pairs) = Pairs::open(&path, 0) {
                let _ = Labels::from_column(&pairs, "finding");
            }
        }
        1 => drop(Labels::open(&path)),
        2 => drop(Prompts::open(&path)),
        _ => drop(Boxes::open(&path)),
    });
}
