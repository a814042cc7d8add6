//! The transformer, built from a spec's options one block at a time; it knows no tensor names and
//! no families.
//!
//! Shape suffixes in this room: B batch, T tokens, E embed, F ffn, H query heads, G key/value
//! heads, K head dim, V vocab, N rows.

mod block;
mod cache;
mod frame;
mod fresh;
mod head;
mod held;
mod run;
mod weights;

pub use crate::nn::{
    Input, Linear, MixerContext, MixerState, NoTap, NormLayer, PartWeights, PortTap, Rope, Tap,
    activate, over_shared_ids, row_chunks,
};
pub use block::{Block, Stream};
pub use cache::Cache;
pub use frame::Frame;
pub use fresh::fresh_weights;
pub use head::{LmHead, gradient_on_logits};
pub use held::{Direction, Held, LayerWeights};
pub use run::{BatchStore, InMemory, LayerStore, Walk, hidden_of, run_layers};

pub use crate::spec::{Port, Ports, Site};
pub use weights::Parameter;

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::checkpoint::{MemorySource, TensorSource};
use crate::error::{Error, Result};
use crate::spec::{At, ModelSpec, ParamKind, Role};
use weights::Weights;

/// A model with its weights on a device.
#[derive(Debug)]
pub struct Transformer {
    /// What it was built from.
    pub spec: ModelSpec,
    /// Where the weights are.
    pub device: Device,
    /// What stands around the layers.
    pub frame: Rc<Frame>,
    /// The layers.
    pub blocks: Vec<Rc<Block>>,
    parameters: Vec<Parameter>,
    layer_weights: Option<Rc<dyn LayerWeights>>,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Where its weights go.
    pub device: Device,
    /// The type it computes in.
    pub kind: Kind,
    /// Whether gradients will be asked for.
    pub trainable: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            trainable: false,
        }
    }
}

impl Transformer {
    /// Reads every weight of a source that [`ModelSpec::check`] has accepted.
    pub fn load(source: &dyn TensorSource, spec: &ModelSpec, options: LoadOptions) -> Result<Self> {
        Self::load_by_layer(source, spec, options, |_, _| Ok(()))
    }

    /// The same; each layer's weights are shown as soon as they are read, before those of the next.
    pub fn load_by_layer(
        source: &dyn TensorSource,
        spec: &ModelSpec,
        options: LoadOptions,
        mut shown: impl FnMut(usize, &[Parameter]) -> Result<()>,
    ) -> Result<Self> {
        spec.check_computable()?;
        let mut weights = Weights::new(source, spec, options);
        let token_table_ve = weights
            .part(At::Model)
            .tensor(Role::TOKEN_EMBEDDING, ParamKind::Weight)?;
        let mut blocks = Vec::with_capacity(spec.n_layers());
        for layer_idx in 0..spec.n_layers() {
            let before = weights.parameters().len();
            blocks.push(Rc::new(Block::load(&mut weights, layer_idx)?));
            shown(layer_idx, weights.parameters().split_at(before).1)?;
        }
        Ok(Transformer {
            spec: spec.clone(),
            device: options.device,
            frame: Rc::new(Frame::load(&mut weights, token_table_ve)?),
            blocks,
            parameters: weights.finish()?,
            layer_weights: None,
        })
    }

    /// Has the layers' weights brought from there whenever they run.
    pub fn keep_layers_at(&mut self, weights: Rc<dyn LayerWeights>) {
        self.layer_weights = Some(weights);
    }

    /// Whether they are brought.
    pub fn brings_layers(&self) -> bool {
        self.layer_weights.is_some()
    }

    /// A layer's weights, for as long as what is returned lives: whoever runs a layer by itself
    /// holds it.
    ///
    /// # Errors
    /// As bringing them does.
    pub fn hold(&self, layer_idx: usize, direction: Direction) -> Result<Held<'_>> {
        Held::bring(self.layer_weights.as_deref(), layer_idx, direction)
    }

    /// Bytes of its weights; of layers that are brought, what they take where they wait and here.
    pub fn n_bytes(&self) -> u64 {
        let elsewhere = self.layer_weights.as_ref();
        let is_here = |it: &&Parameter| elsewhere.is_none() || it.layer.is_none();
        let here = self.parameters.iter().filter(is_here).map(|it| {
            let wide = it.tensor.kind().elt_size_in_bytes() as u64;
            wide * it.tensor.numel() as u64
        });
        here.sum::<u64>() + elsewhere.map_or(0, |weights| weights.n_bytes())
    }

    /// Has all layers brought, as a forward pass does: where processes bring them together, each
    /// takes part in the passes of the others. The last one stays, for whoever goes back from
    /// there.
    ///
    /// # Errors
    /// As bringing them does.
    pub fn stand_by(&self) -> Result<Option<Held<'_>>> {
        let n_layers = self.layer_weights.as_ref().map_or(0, |_| self.blocks.len());
        let mut last = None;
        for layer_idx in 0..n_layers {
            drop(last.take());
            last = Some(self.hold(layer_idx, Direction::Forward)?);
        }
        Ok(last)
    }

    /// Last hidden state [B, T, E] (after the final norm) of token ids [B, T]; where those are
    /// filled up on the right, an [`Input`] says where, and what stands at tokens is the same as
    /// without padding.
    ///
    /// # Errors
    /// `Data` when the sequence is longer than the model's positions.
    pub fn hidden<'a>(
        &self,
        input: impl Into<Input<'a>>,
        tap: &mut dyn Tap,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        hidden_of(
            &LayerStore::Loaded(self),
            &self.frame,
            input.into(),
            tap,
            cache,
        )
    }

    /// One layer of [`Transformer::hidden`] on its own, without a cache.
    pub fn layer(
        &self,
        layer_idx: usize,
        x_bte: &Tensor,
        context: &MixerContext,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        match self.blocks.get(layer_idx) {
            Some(block) => block.shown(x_bte, context, tap, None),
            None => Err(Error::Internal(format!("there is no layer {layer_idx}"))),
        }
    }

    /// The end of [`Transformer::hidden`]: from what leaves the last layer to the last hidden
    /// state.
    pub fn last(&self, x_bte: Tensor, tap: &mut dyn Tap) -> Result<Tensor> {
        self.frame.last(x_bte, tap)
    }

    /// Logits [.., V] of hidden states [.., E].
    ///
    /// # Errors
    /// `Data` for an encoder without a head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.frame.logits(hidden)
    }

    /// Whether [`Transformer::logits`] works.
    pub fn has_head(&self) -> bool {
        self.frame.has_head()
    }

    /// The same model without some of its layers; weights are shared.
    #[must_use]
    pub fn without(&self, layers: Range<usize>) -> Transformer {
        Transformer {
            spec: self.spec.clone(),
            device: self.device,
            frame: Rc::clone(&self.frame),
            blocks: self
                .blocks
                .iter()
                .enumerate()
                .filter(|(layer_idx, _)| !layers.contains(layer_idx))
                .map(|(_, block)| Rc::clone(block))
                .collect(),
            parameters: Vec::new(),
            layer_weights: None,
        }
    }

    /// Whether positions see only earlier ones.
    pub fn is_causal(&self) -> bool {
        self.spec.options.causal
    }

    /// The trained weights, ties once; tensors share memory with the model.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The weights as they are stored: names, layout and type of the source; `masters` go before
    /// the model's own where the model computes in less than they hold.
    pub fn to_source(&self, masters: &BTreeMap<String, Tensor>) -> Result<MemorySource> {
        let mut source = MemorySource::default();
        for parameter in &self.parameters {
            source.insert(
                parameter.name.as_str(),
                &parameter.stored(masters.get(&parameter.name))?,
            )?;
        }
        Ok(source)
    }
}
