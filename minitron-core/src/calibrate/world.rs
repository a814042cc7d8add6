//! Several processes at one text.

use std::fmt::Debug;

use tch::Tensor;

use crate::error::Result;

/// The processes that share a calibration text. All of them call the same functions in the same
/// order.
pub trait World: Debug {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Replaces a contiguous tensor by that of another process; all have one of its shape and type.
    ///
    /// # Errors
    /// `Ranks` where one does not take part.
    fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<()>;
}

/// One process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl World for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn broadcast(&self, _tensor: &Tensor, _from: usize) -> Result<()> {
        Ok(())
    }
}
