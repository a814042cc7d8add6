//! Documents to tokens to windows, in a deterministic order: all at once, or as training asks for
//! them.

mod block;
mod documents;
mod epoch;
mod held;
mod identity;
mod loader;
mod mixture;
mod order;
mod packing;
mod sampling;
mod spec;
mod stream;
mod text_options;
mod tokenise;
mod tokenizer;
mod vocabulary;
mod worker;

pub use block::Start;
pub use documents::DocumentPosition;
pub use loader::{BLOCK_TOKENS, Cursor, DataLoader, LoaderOptions};
pub use order::Order;
pub use sampling::WindowSampling;
pub use spec::{DataSpec, Reading, files_of};
pub use stream::SourceCursor;
pub use text_options::{Attend, LossMask, Pack, TextOptions};
pub use tokenizer::Tokenizer;
pub use vocabulary::{OtherToken, TokenizerDifference, are_texts};
