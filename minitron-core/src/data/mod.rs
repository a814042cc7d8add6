//! Documents to tokens to windows, in a deterministic order: all at once, or as training asks for them.

mod block;
mod documents;
mod feed;
mod filling;
mod identity;
mod mixture;
mod order;
mod packing;
mod spec;
mod targets;
mod text_options;
mod token;
mod tokenise;
mod tokenizer;
mod vocabulary;
mod windows;

pub use block::Start;
pub use documents::Place;
pub use feed::{BLOCK_TOKENS, Cursor, Feed, FeedOptions, LaneCursor};
pub use filling::fill;
pub use order::Order;
pub use spec::{DataSpec, Reading, files_of};
pub use targets::{Targets, Task, WindowRows};
pub use text_options::{Attend, LossMask, Pack, TextOptions};
pub use token::{Marks, Token};
pub use tokenizer::Tokenizer;
pub use vocabulary::{OtherToken, TokenizerDifference, are_texts};
pub use windows::{Piece, Windows};
