//! Documents to tokens to windows, in a deterministic order: all at once, or as training asks for them.

mod block;
mod documents;
mod feed;
mod filling;
mod identity;
mod mixture;
mod order;
mod spec;
mod targets;
mod tokenizer;
mod vocabulary;
mod windows;

pub use block::Start;
pub use documents::Place;
pub use feed::{BLOCK_TOKENS, Cursor, Feed, FeedOptions, LaneCursor};
pub use filling::fill;
pub use order::Order;
pub use spec::{DataSpec, Pack, Reading, files_of};
pub use targets::{Targets, Task, WindowRows};
pub use tokenizer::Tokenizer;
pub use vocabulary::{OtherToken, TokenizerDifference, are_texts};
pub use windows::{Piece, Windows};
