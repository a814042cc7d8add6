//! Moments and weights of a state on disk: one file, or one of every rank that kept a part.
//!
//! ```text
//! state.safetensors                   m/NAME, v/NAME, w/NAME, each of its tensor's shape
//! state-00001-of-00002.safetensors    the same names, each the rank's values, one-dimensional
//! ```
//! Parts follow each other in the order of ranks, so they are read by any number of ranks.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::shard::Shard;
use minitron_core::checkpoint::{MemorySource, Reader, TensorInfo, TensorSource, write_tensors};
use minitron_core::error::{Error, IoContext, Result};

const WHOLE: &str = "state.safetensors";

/// Writes a rank's tensors into a state's folder.
pub(super) fn write(dir: &Path, shard: Shard, tensors: &MemorySource) -> Result<()> {
    let path = file_of(dir, shard.place());
    write_tensors(&path, tensors)?;
    if shard.is_whole() {
        return Ok(());
    }
    // Another rank gives the folder its place.
    File::open(&path)
        .and_then(|file| file.sync_all())
        .at_path(&path)
}

fn file_of(dir: &Path, (rank, n_ranks): (usize, usize)) -> PathBuf {
    match n_ranks {
        1 => dir.join(WHOLE),
        _ => dir.join(format!("state-{:05}-of-{n_ranks:05}.safetensors", rank + 1)),
    }
}

/// Opens what `n_ranks` wrote.
///
/// # Errors
/// `Io` or `Checkpoint` naming a file that is missing or damaged.
pub(super) fn open(dir: &Path, n_ranks: usize) -> Result<Box<dyn TensorSource>> {
    if n_ranks <= 1 {
        return Ok(Box::new(Reader::open_file(&dir.join(WHOLE))?));
    }
    let mut parts = Vec::with_capacity(n_ranks);
    for rank in 0..n_ranks {
        parts.push(Reader::open_file(&file_of(dir, (rank, n_ranks)))?);
    }
    Ok(Box::new(Parts(parts)))
}

/// Values of all ranks, one-dimensional.
struct Parts(Vec<Reader>);

impl TensorSource for Parts {
    fn names(&self) -> Vec<String> {
        self.0.first().map(TensorSource::names).unwrap_or_default()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let mut n_values = 0_usize;
        let mut dtype = None;
        for part in &self.0 {
            let info = part.info(name)?;
            n_values = n_values.checked_add(*info.shape.first()?)?;
            dtype = Some(info.dtype);
        }
        Some(TensorInfo {
            dtype: dtype?,
            shape: vec![n_values],
        })
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            parts.push(part.read(name)?);
        }
        let all = Tensor::f_cat(&parts, 0)?;
        if rows.end > all.numel() {
            return Err(Error::Internal(format!("`{name}`: no values {rows:?}")));
        }
        Ok(all.f_narrow(0, rows.start as i64, rows.len() as i64)?)
    }
}
