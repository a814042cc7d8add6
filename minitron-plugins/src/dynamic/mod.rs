//! Libraries opened while running.

mod cuda;
mod elf;
mod library;
mod search;

pub use cuda::make_cuda_visible;
pub use elf::objection;
pub use library::{handshake, open};
pub use search::find;
