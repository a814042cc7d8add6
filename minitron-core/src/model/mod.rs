//! The transformer, built from a blueprint's options one block at a time; it knows no tensor names and no families.
//!
//! Shape suffixes in this room: B batch, T tokens, E embed, F ffn, H query heads, G key/value heads, K head dim,
//! V vocab, N rows.

mod attention;
mod block;
mod cache;
mod fresh;
mod layers;
mod rope;
mod rows;
mod tap;
mod weights;

pub use cache::Cache;
pub use fresh::fresh_weights;
pub use rows::row_chunks;
pub use tap::{NoTap, Site, Tap};
pub use weights::Parameter;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::blueprint::{Blueprint, Output, Positions, Role, Slot};
use crate::checkpoint::{MemorySource, TensorSource};
use crate::error::{Error, Result};
use block::Block;
use layers::{Linear, Norm};
use rope::RopeTable;
use weights::Weights;

/// A model with its weights on a device.
#[derive(Debug)]
pub struct Transformer {
    /// What it was built from.
    pub blueprint: Blueprint,
    /// Where the weights are.
    pub device: Device,
    token_table_ve: Tensor,
    position_table: Option<Tensor>,
    type_table: Option<Tensor>,
    embedding_norm: Option<Norm>,
    rope: Option<RopeTable>,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    head: Head,
    parameters: Vec<Parameter>,
}

#[derive(Debug)]
struct Head {
    transform: Option<(Linear, Norm)>,
    projection: Option<Linear>,
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
        LoadOptions { device: Device::Cpu, kind: Kind::Float, trainable: false }
    }
}

impl Transformer {
    /// Reads every weight of a source that [`Blueprint::check`] has accepted.
    pub fn load(source: &dyn TensorSource, blueprint: &Blueprint, options: LoadOptions) -> Result<Self> {
        let mut weights = Weights::new(source, blueprint, options);
        let token_table_ve = weights.required(Role::TokenEmbedding, Slot::Weight, None)?;
        let blocks = (0..blueprint.n_layers())
            .map(|layer_idx| Block::load(&mut weights, layer_idx))
            .collect::<Result<Vec<_>>>()?;
        let transform = match weights.linear_opt(Role::HeadTransform, None)? {
            Some(linear) => Some((linear, weights.norm(Role::HeadNorm, None)?)),
            None => None,
        };
        let projection = match blueprint.options.output {
            Output::Hidden => None,
            Output::Logits if blueprint.options.tied => Some(Linear {
                weight_oi: token_table_ve.shallow_clone(),
                bias_o: weights.optional(Role::Head, Slot::Bias, None)?,
            }),
            Output::Logits => Some(weights.linear(Role::Head, None)?),
        };
        let rope = match &blueprint.options.positions {
            Positions::Rotary(rotary) => {
                Some(RopeTable::new(rotary, blueprint.options.max_positions, options.device, options.kind)?)
            }
            Positions::Learned => None,
        };
        Ok(Transformer {
            blueprint: blueprint.clone(),
            device: options.device,
            token_table_ve,
            position_table: weights.optional(Role::PositionEmbedding, Slot::Weight, None)?,
            type_table: weights.optional(Role::TypeEmbedding, Slot::Weight, None)?,
            embedding_norm: weights.norm_opt(Role::EmbeddingNorm, None)?,
            rope,
            blocks,
            final_norm: weights.norm_opt(Role::FinalNorm, None)?,
            head: Head { transform, projection },
            parameters: weights.finish()?,
        })
    }

    /// Last hidden state [B, T, E] (after the final norm) of token ids [B, T].
    ///
    /// # Errors
    /// `Data` when the sequence is longer than the model's positions.
    pub fn hidden(&self, ids_bt: &Tensor, tap: &mut dyn Tap, mut cache: Option<&mut Cache>) -> Result<Tensor> {
        let (_, n_tokens) = ids_bt.size2()?;
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let max = self.blueprint.options.max_positions as i64;
        if start + n_tokens > max {
            let message = format!("a sequence of {} tokens; this model has {max} positions", start + n_tokens);
            return Err(Error::Data(message));
        }
        let mut x_bte = self.embed(ids_bt, start, n_tokens)?;
        let rope = self.rope.as_ref().map(|table| table.at(start, n_tokens)).transpose()?;
        for (layer_idx, block) in self.blocks.iter().enumerate() {
            let memory = cache.as_mut().and_then(|cache| cache.layer(layer_idx));
            if tap.wants(Site::BlockInput(layer_idx)) {
                tap.see(Site::BlockInput(layer_idx), &x_bte)?;
            }
            x_bte = block.forward(&x_bte, rope.as_ref(), tap, memory)?;
            if tap.wants(Site::BlockOutput(layer_idx)) {
                tap.see(Site::BlockOutput(layer_idx), &x_bte)?;
            }
        }
        if let Some(cache) = cache {
            cache.advance(n_tokens);
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x_bte),
            None => Ok(x_bte),
        }
    }

    fn embed(&self, ids_bt: &Tensor, start: i64, n_tokens: i64) -> Result<Tensor> {
        let mut x_bte = Tensor::f_embedding(&self.token_table_ve, ids_bt, -1, false, false)?;
        if let Some(table) = &self.position_table {
            x_bte = x_bte.f_add(&table.f_narrow(0, start, n_tokens)?)?;
        }
        if let Some(table) = &self.type_table {
            x_bte = x_bte.f_add(&table.f_select(0, 0)?)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(&x_bte),
            None => Ok(x_bte),
        }
    }

    /// Logits [.., V] of hidden states [.., E].
    ///
    /// # Errors
    /// `Data` for an encoder without a head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let Some(projection) = &self.head.projection else {
            let message = format!("this `{}` model has no language-model head", self.blueprint.architecture);
            return Err(Error::Data(message));
        };
        match &self.head.transform {
            Some((dense, norm)) => {
                let activated = layers::activate(&dense.forward(hidden)?, self.blueprint.options.activation)?;
                projection.forward(&norm.forward(&activated)?)
            }
            None => projection.forward(hidden),
        }
    }

    /// Whether [`Transformer::logits`] works.
    pub fn has_head(&self) -> bool {
        self.head.projection.is_some()
    }

    /// Whether positions see only earlier ones.
    pub fn is_causal(&self) -> bool {
        self.blueprint.options.causal
    }

    /// The trained weights, ties once; tensors share memory with the model.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The weights as they are stored: names, layout and type of the source; `masters` go before the model's own where the
    /// model computes in less than they hold.
    pub fn to_source(&self, masters: &BTreeMap<String, Tensor>) -> Result<MemorySource> {
        let mut source = MemorySource::default();
        for parameter in &self.parameters {
            source.insert(parameter.name.as_str(), &parameter.stored(masters.get(&parameter.name))?)?;
        }
        Ok(source)
    }
}
