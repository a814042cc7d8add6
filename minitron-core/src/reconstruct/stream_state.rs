//! The residual stream of one batch, between two parts of a layer.

use tch::Tensor;

use crate::error::Result;
use crate::model::{Block, MixerContext, NoTap, Stream, Tap};

/// One batch on its way through a model.
pub(super) struct StreamState {
    /// The residual stream.
    pub now_bte: Tensor,
    /// What entered the layer under way.
    entered_bte: Tensor,
}

impl StreamState {
    pub fn new(x_bte: Tensor) -> Self {
        StreamState {
            entered_bte: x_bte.shallow_clone(),
            now_bte: x_bte,
        }
    }

    /// As layers read it.
    pub fn stream(&self) -> Stream<'_> {
        Stream {
            now_bte: &self.now_bte,
            entered_bte: &self.entered_bte,
        }
    }

    /// Before the first part of a layer.
    pub fn enter(&mut self) {
        self.entered_bte = self.now_bte.shallow_clone();
    }

    /// What a part of a layer reads, before any norm.
    pub fn read(&self, reads_layer_input: bool, part: usize) -> &Tensor {
        if reads_layer_input && part > 0 {
            &self.entered_bte
        } else {
            &self.now_bte
        }
    }

    /// Past one part of a layer; the sum before it settles is given back.
    pub fn pass(&mut self, block: &Block, part: usize, context: &MixerContext) -> Result<Tensor> {
        self.pass_shown(block, part, context, &mut NoTap)
    }

    /// The same with somebody looking on.
    pub fn pass_shown(
        &mut self,
        block: &Block,
        part: usize,
        context: &MixerContext,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        if part == 0 {
            self.enter();
        }
        let sum_bte = block.added(part, self.stream(), context, tap)?;
        self.now_bte = block.settle(part, sum_bte.shallow_clone())?;
        Ok(sum_bte)
    }
}
