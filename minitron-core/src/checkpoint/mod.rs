//! Model folders on disk: `config.json` and safetensors in, the same out.
//!
//! Everything further right sees a [`TensorSource`]: names, shapes and a way to read one tensor at a time.

mod claim;
mod companions;
mod config;
mod direct;
mod finite;
mod folder;
mod links;
mod modules;
mod reader;
mod source;
mod whole;
mod writer;

pub use claim::Claim;
pub use companions::companions;
pub use config::Config;
pub use folder::OutputDir;
pub use modules::{DenseFile, Module, modules};
pub use reader::{PIECE_BYTES, Reader};
pub use source::{MemorySource, TensorInfo, TensorSource, append_tensor, kind_of};
pub use whole::{remove_whole, replace_file, sync_dir, sync_tree, write_whole};
pub use writer::{WriteOptions, write_model, write_tensors};

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A model folder, opened: its configuration and its tensors, read when they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: Config,
    /// `model.safetensors`, or the shards that the index names.
    pub tensors: Reader,
}

/// Whether a folder holds weights, or a table that says where they are.
pub fn has_weights(dir: &Path) -> bool {
    [reader::SINGLE, reader::INDEX].iter().any(|name| dir.join(name).exists())
}

impl Checkpoint {
    /// Opens a folder; no tensor is read yet.
    ///
    /// # Errors
    /// `Checkpoint` when the folder, its config or its weights are missing or malformed, or a file is a link out of the folder.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::checkpoint(
                dir,
                "no such model folder; expected one with config.json and model.safetensors, or a hub id `org/name`",
            ));
        }
        links::refuse_outside(dir)?;
        let config = Config::load(&dir.join("config.json"))?;
        let tensors = Reader::open(dir)?;
        Ok(Checkpoint { dir: dir.to_path_buf(), config, tensors })
    }
}
