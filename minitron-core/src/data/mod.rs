//! Documents to tokens to windows, in a deterministic order.

mod filling;
mod order;
mod spec;
mod targets;
mod tokenizer;
mod windows;

pub use filling::fill;
pub use order::Order;
pub use spec::{DataSpec, Pack, Reading, files_of};
pub use targets::{Targets, Task, WindowRows};
pub use tokenizer::Tokenizer;
pub use windows::Windows;
