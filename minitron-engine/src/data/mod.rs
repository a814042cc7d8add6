//! Documents to tokens to windows, in a deterministic order: all at once, or as training asks for
//! them.

mod block;
mod documents;
mod held;
mod identity;
mod loader;
mod mixture;
mod order;
mod packing;
mod spec;
mod text_options;
mod tokenise;
mod tokenizer;
mod vocabulary;

pub use block::Start;
pub use documents::DocumentPosition;
pub use loader::{BLOCK_TOKENS, Cursor, DataLoader, LoaderOptions, SourceCursor};
pub use order::Order;
pub use spec::{DataSpec, Reading, files_of};
pub use text_options::{Attend, LossMask, Pack, TextOptions};
pub use tokenizer::Tokenizer;
pub use vocabulary::{OtherToken, TokenizerDifference, are_texts};
