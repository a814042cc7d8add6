use std::fmt::Debug;

use crate::error::Result;

/// A model's tokenizer: text to token ids and back, with the ids that windows need.
pub trait Tokenize: Debug + Send + Sync {
    /// Token ids of a text, without special tokens.
    ///
    /// # Errors
    /// `Data` where there is no tokenizer, or a token lies outside the model's vocabulary.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// Token ids of texts, made on all cores, with the special tokens that the tokenizer itself
    /// puts around a text: for many, one at its beginning, unless the text begins with it.
    ///
    /// # Errors
    /// As [`Tokenize::encode`].
    fn encode_whole(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>>;

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// `Data` where there is no tokenizer, or it cannot decode.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// Refuses ids outside the model's vocabulary.
    ///
    /// # Errors
    /// `Data` naming the first.
    fn check(&self, ids: &[u32]) -> Result<()>;

    /// What stands before a text that nothing precedes: the beginning-of-sequence token where the
    /// tokenizer has one, else the end-of-sequence token.
    fn prefix(&self) -> Option<u32>;

    /// `[CLS]` and `[SEP]` of encoders.
    fn special_tokens(&self) -> Option<(u32, u32)>;

    /// `[MASK]` of encoders.
    fn mask(&self) -> Option<u32>;
}
