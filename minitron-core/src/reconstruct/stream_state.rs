//! The residual stream of one batch, between two parts of a layer, and where those of all batches
//! wait.

use std::path::Path;
use std::rc::Rc;

use tch::{Device, Tensor};

use super::store::TensorStore;
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

/// The streams of all batches of this process, in memory or in a folder.
#[derive(Debug)]
pub(super) struct StreamStore {
    tensors: TensorStore,
    device: Device,
    n_batches: usize,
    /// Whether some part reads what entered its layer, past the first one.
    keeps_entered: bool,
}

impl StreamStore {
    /// None yet.
    ///
    /// # Errors
    /// As [`TensorStore::new`].
    pub fn new(dir: Option<&Path>, name: &str, keeps_entered: bool) -> Result<Self> {
        Ok(StreamStore {
            tensors: TensorStore::new(dir, name)?,
            device: Device::Cpu,
            n_batches: 0,
            keeps_entered,
        })
    }

    /// The same before a layer, elsewhere: what entered the one under way is left out.
    ///
    /// # Errors
    /// As [`TensorStore::put`].
    pub fn copied(&self, dir: Option<&Path>, name: &str) -> Result<Self> {
        let mut copied = StreamStore::new(dir, name, self.keeps_entered)?;
        for batch in 0..self.n_batches {
            copied.push(self.before(0, batch)?.now_bte)?;
        }
        Ok(copied)
    }

    /// How many batches there are.
    pub fn len(&self) -> usize {
        self.n_batches
    }

    /// One more, before the first layer.
    ///
    /// # Errors
    /// As [`TensorStore::put`].
    pub fn push(&mut self, x_bte: Tensor) -> Result<()> {
        self.device = x_bte.device();
        self.n_batches += 1;
        self.put(self.n_batches - 1, &StreamState::new(x_bte))
    }

    /// Puts away what has passed a part.
    ///
    /// # Errors
    /// As [`TensorStore::put`].
    pub fn put(&mut self, batch: usize, state: &StreamState) -> Result<()> {
        self.tensors.put(&batch.to_string(), &state.now_bte)?;
        match self.keeps_entered {
            true => self.tensors.put(&entered(batch), &state.entered_bte),
            false => Ok(()),
        }
    }

    /// As it stands before a part of a layer.
    ///
    /// # Errors
    /// As [`TensorStore::read`].
    pub fn before(&self, part: usize, batch: usize) -> Result<StreamState> {
        let now_bte = self.tensors.read(&batch.to_string())?;
        let now_bte = now_bte.f_to_device(self.device)?;
        if part == 0 || !self.keeps_entered {
            return Ok(StreamState::new(now_bte));
        }
        let entered_bte = self.tensors.read(&entered(batch))?;
        Ok(StreamState {
            now_bte,
            entered_bte: entered_bte.f_to_device(self.device)?,
        })
    }
}

/// Streams of all batches of this process, and how those lie.
pub(super) struct Embedded {
    pub states: StreamStore,
    pub contexts: Vec<Rc<MixerContext>>,
}

impl Embedded {
    /// The same streams by themselves.
    pub fn copied(&self, spill: Option<&Path>, name: &str) -> Result<Self> {
        Ok(Embedded {
            states: self.states.copied(spill, name)?,
            contexts: self.contexts.clone(),
        })
    }

    /// Moves all batches past a layer.
    pub fn pass_layer(&mut self, block: &Block) -> Result<()> {
        for part in 0..block.n_parts() {
            self.pass(block, part, &mut |_, _| Ok(()))?;
        }
        Ok(())
    }

    /// Moves all batches past one part of a layer; `look` sees their sums before they settle.
    pub fn pass(
        &mut self,
        block: &Block,
        part: usize,
        look: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        for (batch, context) in self.contexts.iter().enumerate() {
            let mut state = self.states.before(part, batch)?;
            look(batch, &state.pass(block, part, context)?)?;
            self.states.put(batch, &state)?;
        }
        Ok(())
    }
}

/// The text as it enters a layer; in that one alone a student differs from its teacher.
pub struct LayerInputs {
    pub(super) layer: usize,
    pub(super) streams: Embedded,
}

fn entered(batch: usize) -> String {
    format!("{batch}-entered")
}
