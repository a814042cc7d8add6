//! The one interface through which tensors are read, whether from files, a pruned view or memory.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Present, Result};

/// Type and shape of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as stored.
    pub dtype: Dtype,
    /// Side lengths as stored.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements; `None` when the product overflows.
    pub fn n_elements(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(1u64, |n, &side| n.checked_mul(side as u64))
    }

    /// Number of bytes; `None` when the product overflows.
    pub fn n_bytes(&self) -> Option<u64> {
        self.n_elements()?
            .checked_mul(self.dtype.bitsize() as u64)
            .map(|bits| bits.div_ceil(8))
    }
}

/// A model's tensors by name. Nothing behind this trait changes while it is read, so views compose.
pub trait TensorSource {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// Type and shape; `None` for an unknown name. Costs no read.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Some rows (positions along the first side) on the CPU, contiguous, in the stored type: how
    /// anything larger than memory is read.
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor>;

    /// The whole tensor, likewise.
    fn read(&self, name: &str) -> Result<Tensor> {
        let n_rows = self
            .info(name)
            .and_then(|info| info.shape.first().copied())
            .unwrap_or(1);
        self.read_rows(name, 0..n_rows)
    }

    /// Appends the same rows as they are stored, row by row: what is copied from file to file never
    /// becomes a tensor.
    fn append_rows(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        append_tensor(&self.read_rows(name, rows)?, bytes)
    }

    /// The same whatever the values are, for telling weights apart: what is not finite may be cut
    /// away yet.
    fn append_unchecked(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        self.append_rows(name, rows, bytes)
    }
}

/// Appends a tensor's elements as files hold them (safetensors and our machines are little-endian).
pub fn append_tensor(tensor: &Tensor, bytes: &mut Vec<u8>) -> Result<()> {
    let tensor = tensor.f_contiguous()?;
    let start = bytes.len();
    bytes.resize(
        start + tensor.numel() * tensor.f_kind()?.elt_size_in_bytes(),
        0,
    );
    Ok(tensor.f_copy_data_u8(
        bytes.get_mut(start..).present("room for a tensor")?,
        tensor.numel(),
    )?)
}

/// libtorch's name for a stored type; `None` for types that no weight has.
pub fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

/// safetensors' name for a type; `None` for types that are never written.
fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        _ => return None,
    })
}

/// Tensors held in memory: a trained model before it is written, optimiser state, scores.
#[derive(Debug, Default)]
pub struct MemorySource {
    tensors: BTreeMap<String, Tensor>,
}

impl MemorySource {
    /// Adds a tensor, moved to the CPU.
    ///
    /// # Errors
    /// `Internal` when its type has no name in the file format.
    pub fn insert(&mut self, name: impl Into<String>, tensor: &Tensor) -> Result<()> {
        let name = name.into();
        if dtype_of(tensor.f_kind()?).is_none() {
            return Err(Error::Internal(format!(
                "`{name}` has type {:?}, which is never written",
                tensor.kind()
            )));
        }
        self.tensors.insert(
            name,
            tensor
                .f_detach()?
                .f_to_device(Device::Cpu)?
                .f_contiguous()?,
        );
        Ok(())
    }
}

impl TensorSource for MemorySource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.tensors.get(name)?;
        Some(TensorInfo {
            dtype: dtype_of(tensor.f_kind().ok()?)?,
            shape: tensor.size().iter().map(|&side| side as usize).collect(),
        })
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.dim() == 0 => Ok(tensor.shallow_clone()),
            Some(tensor) => Ok(tensor.f_narrow(0, rows.start as i64, rows.len() as i64)?),
            None => Err(Error::Internal(format!("no tensor `{name}` in memory"))),
        }
    }
}
