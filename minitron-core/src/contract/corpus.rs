use std::fmt::Debug;

use crate::conversation::Example;
use crate::error::Result;

/// One document.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// To be tokenised by the model's own tokenizer.
    Text(String),
    /// Already token ids; no end-of-sequence token is added.
    Tokens(Vec<u32>),
    /// The beginning, or a further piece, of a document too long to hold at once: the next item
    /// goes on with it.
    Part(Box<Document>),
    /// Messages, to be rendered by the model's own chat template, or a prompt and its completion.
    Example(Box<Example>),
}

/// Documents in a fixed order.
pub type Documents<'a> = Box<dyn Iterator<Item = Result<Document>> + 'a>;

/// A source of documents.
///
/// # Law
/// The same parameters and seed give the same documents in the same order, so the number of items
/// before it is a place to go on from. They are read as they are asked for, none larger than
/// memory; the last item ends its document. It never tokenises.
#[typetag::serde(tag = "type")]
pub trait Corpus: Debug + Send + Sync {
    /// File endings (without the dot) that select this corpus; none where it is named by tag alone.
    fn extensions(&self) -> &'static [&'static str];

    /// Files that the documents come from, for hashing.
    fn files(&self) -> Vec<std::path::PathBuf>;

    /// The documents.
    fn documents(&self, seed: u64) -> Result<Documents<'_>>;

    /// The documents after the first `n_items` items. Formats that can go there faster than by
    /// reading do.
    fn documents_from(&self, seed: u64, n_items: u64) -> Result<Documents<'_>> {
        let mut documents = self.documents(seed)?;
        for _ in 0..n_items {
            // An error here would be lost to `skip`.
            if documents.next().transpose()?.is_none() {
                break;
            }
        }
        Ok(documents)
    }
}
