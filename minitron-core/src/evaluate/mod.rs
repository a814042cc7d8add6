//! Forward passes over held-out windows in row chunks, and generation. What is computed from them is a plugin's.

mod generate;
mod scan;

pub use generate::{Sampling, generate};
pub use scan::{RowChunk, scan_rows};
