//! The one way through a model's layers, whether they are loaded or read one at a time.

use tch::{Device, Tensor};
use tracing::debug_span;

use super::{Block, Cache, Direction, Frame, Input, LoadOptions, MixerContext, Tap, Transformer};
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};
use crate::spec::ModelSpec;

/// Where a model's layers are.
#[derive(Clone, Copy)]
pub enum LayerStore<'a> {
    /// All in memory.
    Loaded(&'a Transformer),
    /// In a source: each is read when its turn comes, and one is held at a time.
    Stored {
        /// Its tensors.
        source: &'a dyn TensorSource,
        /// Its description.
        spec: &'a ModelSpec,
        /// Where and in what it computes.
        options: LoadOptions,
    },
}

/// What goes through the layers, batch by batch.
pub trait Walk {
    /// What a batch carries from layer to layer.
    type State;

    /// Before the first layer.
    fn enter(&mut self, batch: usize) -> Result<Self::State>;

    /// One layer.
    fn layer(
        &mut self,
        batch: usize,
        layer_idx: usize,
        block: &Block,
        state: &mut Self::State,
    ) -> Result<()>;

    /// After the last layer.
    fn leave(&mut self, batch: usize, state: Self::State) -> Result<()>;
}

/// Where states wait while other batches pass a layer.
pub trait BatchStore<W: Walk> {
    /// The layer that all batches of an interrupted run stand before.
    fn begin(&self) -> Option<usize> {
        None
    }

    /// Puts away what stands before a layer.
    fn put(&mut self, layer_idx: usize, batch: usize, state: W::State) -> Result<()>;

    /// Gives it back.
    fn take(&mut self, layer_idx: usize, batch: usize) -> Result<W::State>;

    /// All batches stand before a layer.
    fn reached(&mut self, _layer_idx: usize, _walk: &W) -> Result<()> {
        Ok(())
    }
}

/// Holds all states in memory.
#[derive(Debug)]
pub struct InMemory<F>(Vec<Option<F>>);

impl<F> Default for InMemory<F> {
    fn default() -> Self {
        InMemory(Vec::new())
    }
}

impl<W: Walk> BatchStore<W> for InMemory<W::State> {
    fn put(&mut self, _layer_idx: usize, batch: usize, state: W::State) -> Result<()> {
        if self.0.len() <= batch {
            self.0.resize_with(batch + 1, || None);
        }
        if let Some(place) = self.0.get_mut(batch) {
            *place = Some(state);
        }
        Ok(())
    }

    fn take(&mut self, _layer_idx: usize, batch: usize) -> Result<W::State> {
        let state = self.0.get_mut(batch).and_then(Option::take);
        state.ok_or_else(|| {
            Error::Internal(format!("batch {batch} was not put away before a layer"))
        })
    }
}

impl LayerStore<'_> {
    /// Where it computes.
    pub fn device(&self) -> Device {
        match self {
            LayerStore::Loaded(model) => model.device,
            LayerStore::Stored { options, .. } => options.device,
        }
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        match self {
            LayerStore::Loaded(model) => model.blocks.len(),
            LayerStore::Stored { spec, .. } => spec.n_layers(),
        }
    }
}

/// Takes all batches through all layers, in an order that suits the store: loaded layers see batch
/// after batch, so that one state exists at a time; stored ones are read once each, all batches
/// pass, and their states wait in the store.
///
/// A walk sees each batch at each layer once, layers of a batch in order and batches at a layer in
/// order; it takes the same steps either way.
///
/// # Errors
/// Those of the walk, of the store, and of reading a layer.
pub fn run_layers<W: Walk>(
    store: &LayerStore,
    n_batches: usize,
    walk: &mut W,
    waiting: &mut impl BatchStore<W>,
) -> Result<()> {
    let n_layers = store.n_layers();
    let (source, spec, options) = match *store {
        LayerStore::Loaded(model) => return run_loaded(model, n_batches, walk),
        LayerStore::Stored {
            source,
            spec,
            options,
        } => (source, spec, options),
    };
    let begin = match waiting.begin() {
        Some(begin) => begin,
        None => {
            for batch in 0..n_batches {
                let state = walk.enter(batch)?;
                waiting.put(0, batch, state)?;
            }
            waiting.reached(0, walk)?;
            0
        }
    };
    for layer_idx in begin..n_layers {
        let _span = debug_span!("layer", layer_idx).entered();
        let block = Block::open(source, spec, layer_idx, options)?;
        for batch in 0..n_batches {
            let mut state = waiting.take(layer_idx, batch)?;
            walk.layer(batch, layer_idx, &block, &mut state)?;
            waiting.put(layer_idx + 1, batch, state)?;
        }
        waiting.reached(layer_idx + 1, walk)?;
    }
    for batch in 0..n_batches {
        let state = waiting.take(n_layers, batch)?;
        walk.leave(batch, state)?;
    }
    Ok(())
}

/// Where nothing has to wait.
fn run_loaded<W: Walk>(model: &Transformer, n_batches: usize, walk: &mut W) -> Result<()> {
    for batch in 0..n_batches {
        let mut state = walk.enter(batch)?;
        for (layer_idx, block) in model.blocks.iter().enumerate() {
            let _held = model.hold(layer_idx, Direction::Forward)?;
            walk.layer(batch, layer_idx, block, &mut state)?;
        }
        walk.leave(batch, state)?;
    }
    Ok(())
}

/// The last hidden state [B, T, E] of one batch, behind what a cache has seen before it.
///
/// # Errors
/// `Data` when the sequence is longer than the model's positions.
pub fn hidden_of(
    store: &LayerStore,
    frame: &Frame,
    input: Input,
    tap: &mut dyn Tap,
    cache: Option<&mut Cache>,
) -> Result<Tensor> {
    let n_tokens = input.ids_bt.size2()?.1;
    let start = cache.as_ref().map_or(0, |cache| cache.len());
    let context = frame.context(start, n_tokens, input.attention_mask_bt, input.positions_bt)?;
    let mut forward = Forward {
        frame,
        input,
        start,
        context,
        tap,
        cache,
        hidden_bte: None,
    };
    run_layers(store, 1, &mut forward, &mut InMemory::default())?;
    if let Some(cache) = forward.cache {
        cache.advance(n_tokens);
    }
    forward
        .hidden_bte
        .ok_or_else(|| Error::Internal("a forward pass without its end".into()))
}

/// One batch on its way to the last hidden state.
struct Forward<'a, 'i> {
    frame: &'a Frame,
    input: Input<'i>,
    start: i64,
    context: MixerContext,
    tap: &'a mut dyn Tap,
    cache: Option<&'a mut Cache>,
    hidden_bte: Option<Tensor>,
}

impl Walk for Forward<'_, '_> {
    /// The residual stream [B, T, E].
    type State = Tensor;

    fn enter(&mut self, _batch: usize) -> Result<Tensor> {
        self.frame.embed(self.input, self.start)
    }

    fn layer(
        &mut self,
        _batch: usize,
        layer_idx: usize,
        block: &Block,
        x_bte: &mut Tensor,
    ) -> Result<()> {
        let states = self.cache.as_mut().and_then(|cache| cache.layer(layer_idx));
        *x_bte = block.shown(x_bte, &self.context, self.tap, states)?;
        Ok(())
    }

    fn leave(&mut self, _batch: usize, x_bte: Tensor) -> Result<()> {
        self.hidden_bte = Some(self.frame.last(x_bte, self.tap)?);
        Ok(())
    }
}
