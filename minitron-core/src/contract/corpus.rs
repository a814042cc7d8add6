use std::fmt::Debug;

use crate::error::Result;

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// To be tokenised by the model's own tokenizer.
    Text(String),
    /// Already token ids; no end-of-sequence token is added.
    Tokens(Vec<u32>),
}

/// Documents in a fixed order.
pub type Documents<'a> = Box<dyn Iterator<Item = Result<Document>> + 'a>;

/// A source of documents.
///
/// # Law
/// The same parameters and seed give the same documents in the same order, so a position in it is a cursor. It never
/// tokenises.
#[typetag::serde(tag = "type")]
pub trait Corpus: Debug + Send + Sync {
    /// File endings (without the dot) that select this corpus; none where it is named by tag alone.
    fn extensions(&self) -> &'static [&'static str];

    /// Files that the documents come from, for hashing.
    fn files(&self) -> Vec<std::path::PathBuf>;

    /// The documents.
    fn documents(&self, seed: u64) -> Result<Documents<'_>>;
}
