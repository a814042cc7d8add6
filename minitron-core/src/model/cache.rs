//! What mixers keep of the tokens seen so far, for generation.

use tch::Tensor;

use super::Transformer;
use crate::error::{Present, Result};

/// The states of every layer's mixers; all sequences of a batch have the same length.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Vec<MixerState>>,
    len: i64,
}

/// What one mixer keeps: tensors whose first side is the sequences.
#[derive(Debug, Default)]
pub struct MixerState {
    tensors: Vec<Tensor>,
}

impl Cache {
    /// Empty, for a model.
    pub fn new(model: &Transformer) -> Self {
        let of_block = |n_parts: usize| (0..n_parts).map(|_| MixerState::default()).collect();
        Cache { layers: model.blocks.iter().map(|block| of_block(block.n_parts())).collect(), len: 0 }
    }

    /// Number of tokens held.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sequences of these rows \[R\] alone, in their order, each as often as it is named.
    pub fn rows(&self, rows: &Tensor) -> Result<Cache> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            layers.push(layer.iter().map(|state| state.rows(rows)).collect::<Result<_>>()?);
        }
        Ok(Cache { layers, len: self.len })
    }

    pub(super) fn layer(&mut self, layer_idx: usize) -> Option<&mut [MixerState]> {
        self.layers.get_mut(layer_idx).map(Vec::as_mut_slice)
    }

    pub(super) fn advance(&mut self, n_tokens: i64) {
        self.len += n_tokens;
    }
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
    pub fn extended(&mut self, parts: &[&Tensor], side: i64, most: Option<usize>) -> Result<Vec<Tensor>> {
        let mut joined = Vec::with_capacity(parts.len());
        for (idx, part) in parts.iter().enumerate() {
            joined.push(match self.tensors.get(idx) {
                Some(held) => Tensor::f_cat(&[held, part], side)?,
                None => part.shallow_clone(),
            });
        }
        let stays = |x: &Tensor| -> Result<Tensor> {
            let len = x.size().get(side as usize).copied().present("the side that grows")?;
            match most.map(|most| most as i64) {
                Some(most) if most < len => Ok(x.f_narrow(side, len - most, most)?.f_contiguous()?),
                _ => Ok(x.shallow_clone()),
            }
        };
        self.tensors = joined.iter().map(stays).collect::<Result<_>>()?;
        Ok(joined)
    }

    fn rows(&self, rows: &Tensor) -> Result<MixerState> {
        let tensors = self.tensors.iter().map(|tensor| Ok(tensor.f_index_select(0, rows)?));
        Ok(MixerState { tensors: tensors.collect::<Result<_>>()? })
    }
}
