//! Forward passes over held-out windows in row chunks, generation, sentence embeddings. What is computed from them is a plugin's.

mod generate;
mod scan;
mod sentences;

pub use generate::{Sampling, generate};
pub use scan::{RowChunk, scan_rows};
pub use sentences::{Pooling, sentence_embeddings};
