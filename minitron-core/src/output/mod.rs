//! What is written: files and folders that appear whole or not at all, one process an output.

mod atomic;
mod direct;
mod folder;
mod lock;

pub(crate) use atomic::parent_of;
pub use atomic::{remove_atomic, replace_file, sync_dir, sync_tree, write_atomic};
pub(crate) use direct::{BLOCK, DirectFile, aligned_start};
pub use folder::OutputDir;
pub use lock::OutputLock;
