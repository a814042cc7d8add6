//! What a mixer keeps of the tokens seen so far.

use tch::Tensor;

use crate::error::{Present, Result};

/// What one mixer keeps: tensors whose first side is the sequences.
#[derive(Debug, Default)]
pub struct MixerState {
    tensors: Vec<Tensor>,
}

impl MixerState {
    /// What is held.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Holds these instead.
    pub fn replace(&mut self, tensors: Vec<Tensor>) {
        self.tensors = tensors;
    }

    /// What is held with new parts behind it along a side; of that, the last `most` stay held.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn extended(
        &mut self,
        parts: &[&Tensor],
        side: i64,
        most: Option<usize>,
    ) -> Result<Vec<Tensor>> {
        let mut joined = Vec::with_capacity(parts.len());
        for (idx, part) in parts.iter().enumerate() {
            joined.push(match self.tensors.get(idx) {
                Some(held) => Tensor::f_cat(&[held, part], side)?,
                None => part.shallow_clone(),
            });
        }
        self.tensors = joined
            .iter()
            .map(|x| last(x, side, most.map(|most| most as i64)))
            .collect::<Result<_>>()?;
        Ok(joined)
    }

    /// The sequences of these rows \[R\] alone, in their order, each as often as it is named.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn rows(&self, rows: &Tensor) -> Result<MixerState> {
        let tensors = self
            .tensors
            .iter()
            .map(|tensor| Ok(tensor.f_index_select(0, rows)?));
        Ok(MixerState {
            tensors: tensors.collect::<Result<_>>()?,
        })
    }
}

/// The last of what grows along a side, at most so many.
fn last(x: &Tensor, side: i64, most: Option<i64>) -> Result<Tensor> {
    let len = x
        .size()
        .get(side as usize)
        .copied()
        .present("the side that grows")?;
    match most {
        Some(most) if most < len => Ok(x.f_narrow(side, len - most, most)?.f_contiguous()?),
        _ => Ok(x.shallow_clone()),
    }
}
