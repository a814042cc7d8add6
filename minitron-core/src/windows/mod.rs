//! Token ids as models take them: marked, cut into windows, made into batches with what is
//! predicted.

mod batch;
mod padding;
mod token;
mod tokenize;
mod window;

pub use batch::{Batch, Task, WindowRows};
pub use padding::fill;
pub use token::{Marks, Token, predicts};
pub use tokenize::Tokenize;
pub use window::{Sample, Windows, fits};
