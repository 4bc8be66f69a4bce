//! Tables of pairs, labels, prompts and boxes; the deterministic loader.

mod boxes;
mod labels;
pub(crate) mod loader;
mod pairs;
mod prompts;
mod table;

pub use boxes::{Annotation, Boxes};
pub use labels::Labels;
pub use loader::{Batch, Epoch, Loader, LoaderOptions};
pub use pairs::{Pairs, Row, Split};
pub use prompts::{Prompt, Prompts};
pub use table::{Record, Table};
pub(crate) use table::{beginning, csv_row};
