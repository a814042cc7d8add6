//! Forward passes over held-out windows in row chunks, likelihoods of texts after their contexts,
//! generation, sentence embeddings. What is computed from them is a plugin's.

mod generate;
mod likelihood;
mod scan;
mod sentences;
mod subject;

pub use generate::{Sampling, generate};
pub use likelihood::{Continuation, Likelihood, likelihoods};
pub use scan::{RowChunk, scan_rows};
pub use sentences::{Pooling, SentenceModules, sentence_embeddings};
pub use subject::Subject;
