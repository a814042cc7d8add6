//! Model folders on disk: `config.json` and safetensors in, the same out.
//!
//! Everything further right sees a [`TensorSource`]: names, shapes and a way to read one tensor at
//! a time.

mod companions;
mod config;
mod finite;
mod identity;
mod infinite;
mod links;
mod modules;
mod mxfp4;
mod open_file;
mod quantised;
mod reader;
mod source;
mod stale;
mod stream;
mod weight_files;
mod writer;

pub use companions::{companions, copy_tokenizer};
pub use config::Config;
pub use identity::{Identity, weights_digest};
pub use modules::{DenseFile, Module, modules};
pub use open_file::PIECE_BYTES;
pub use quantised::as_codes;
pub use reader::Reader;
pub use source::{MemorySource, TensorInfo, TensorSource, append_tensor, kind_of};
pub use stale::drop_stale;
pub use weight_files::{Remarks, WeightFiles, has_weights, held_instead};
pub use writer::{WriteOptions, write_model, write_tensors, write_tensors_about};

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
    /// What a person should know of the folder.
    pub remarks: Remarks,
}

impl Checkpoint {
    /// Opens a folder; no tensor is read yet.
    ///
    /// # Errors
    /// `Checkpoint` when the folder, its config or its weights are missing or malformed, or a file
    /// is a link out of the folder.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::checkpoint(
                dir,
                "no such model folder; expected one with config.json and model.safetensors, or a \
                 hub id `org/name`",
            ));
        }
        links::refuse_outside(dir)?;
        let config = match Config::load_optional(&dir.join("config.json"))? {
            Some(config) => config,
            None => match weight_files::without_config(dir)? {
                Some(error) => return Err(error),
                None => Config::load(&dir.join("config.json"))?,
            },
        };
        let (files, mut remarks) = WeightFiles::of(dir, Some(&config))?;
        let tensors = Reader::open_files(dir, &files, &mut remarks)?;
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            config,
            tensors,
            remarks,
        })
    }
}
