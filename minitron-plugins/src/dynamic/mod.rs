//! Libraries opened while running.

mod check;
mod cuda;
mod elf;
mod library;
mod search;

pub use check::check_opened;
pub use cuda::make_cuda_visible;
pub use library::{handshake, open};
pub use search::find;
