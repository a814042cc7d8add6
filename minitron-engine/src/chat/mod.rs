//! Conversations as text: a model's own chat template rendered as `transformers` renders it, and
//! which part of the text the assistant said.
//!
//! ```text
//! record (JSON) --Example--> Conversation --ChatTemplate--> Rendered { text, answers }
//!                                                           --tokenizer--> ids, mask
//! ```

mod answers;
mod clock;
mod engine;
mod files;
mod marks;
mod mask;
mod python;
mod render;
mod source;
mod template;

pub use clock::Moment;
pub use mask::token_mask;
pub use template::{ChatTemplate, Rendered};
