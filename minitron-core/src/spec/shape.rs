//! The sizes that a family's config states: what the author of an architecture reads first.

use super::{
    ConfigKey, DEPTH, Dim, HEADS, HIDDEN, KV_HEADS, MLP, Part, ROPE_PAIRS, Side, dim_of_layer,
    fixed, units,
};
use crate::checkpoint::Config;
use crate::error::{Error, Result};

/// Beyond any trained model; a config that says more would only make us allocate.
const MAX_LAYERS: usize = 4096;

/// Where a family's config states its sizes; `vocab_size` is common to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapeKeys {
    /// Residual channels.
    pub hidden: &'static str,
    /// Neurons of an MLP.
    pub mlp: &'static str,
    /// Query heads.
    pub heads: &'static str,
    /// Key/value heads, where the family groups queries.
    pub kv_heads: Option<&'static str>,
    /// Channels of a head, where the family can state them.
    pub head_dim: Option<&'static str>,
    /// Layers.
    pub depth: &'static str,
    /// Positions.
    pub positions: &'static str,
}

impl ShapeKeys {
    /// Llama's words, which most families took over.
    pub const USUAL: ShapeKeys = ShapeKeys {
        hidden: "hidden_size",
        mlp: "intermediate_size",
        heads: "num_attention_heads",
        kv_heads: Some("num_key_value_heads"),
        head_dim: Some("head_dim"),
        depth: "num_hidden_layers",
        positions: "max_position_embeddings",
    };
}

/// The sizes of a model whose layers are alike, checked against each other; the dims and sides that
/// follow from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Residual channels.
    pub hidden: usize,
    /// Neurons of an MLP.
    pub mlp: usize,
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Key/value heads of a layer.
    pub n_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Pairs of them that turn together, where some may go: channel k and channel k + pairs.
    pub rope_pairs: Option<usize>,
    /// Layers.
    pub n_layers: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Positions.
    pub max_positions: usize,
}

impl Shape {
    /// Reads a config; `mlp` and `positions` stand in where it leaves those keys out.
    ///
    /// # Errors
    /// `Checkpoint` for a missing key, or sizes that do not go together.
    pub fn read(
        config: &Config,
        keys: &ShapeKeys,
        mlp: Option<usize>,
        positions: Option<usize>,
    ) -> Result<Self> {
        let hidden = config.size(keys.hidden)?;
        let n_heads = config.size(keys.heads)?;
        let n_kv_heads = keys
            .kv_heads
            .map_or(Ok(n_heads), |key| config.size_or(key, n_heads))?;
        if n_heads % n_kv_heads != 0 {
            let kv_key = keys.kv_heads.unwrap_or(keys.heads);
            return Err(not_a_multiple(
                config,
                (keys.heads, n_heads),
                (kv_key, n_kv_heads),
            ));
        }
        let head_dim = match keys.head_dim.map_or(Ok(None), |key| config.size_opt(key))? {
            Some(head_dim) => head_dim,
            None if hidden % n_heads == 0 => hidden / n_heads,
            None => {
                return Err(not_a_multiple(
                    config,
                    (keys.hidden, hidden),
                    (keys.heads, n_heads),
                ));
            }
        };
        Ok(Shape {
            hidden,
            mlp: size_with_default(config, keys.mlp, mlp)?,
            n_heads,
            n_kv_heads,
            head_dim,
            rope_pairs: None,
            n_layers: at_most(config, keys.depth, config.size(keys.depth)?, MAX_LAYERS)?,
            vocab: config.size("vocab_size")?,
            max_positions: size_with_default(config, keys.positions, positions)?,
        })
    }

    /// Whether several query heads share keys and values.
    pub fn is_grouped(&self) -> bool {
        self.n_kv_heads < self.n_heads
    }

    /// Every named size, layer after layer, with the keys that state it.
    pub fn dims(&self, keys: &ShapeKeys) -> Vec<Dim> {
        self.dims_in("", keys)
    }

    /// The same with the keys in a part of the config, such as `text_config.`.
    pub fn dims_in(&self, scope: &str, keys: &ShapeKeys) -> Vec<Dim> {
        let mut dims = self.unscoped(keys);
        dims.iter_mut()
            .flat_map(|dim| &mut dim.stated)
            .for_each(|key| key.enter(scope));
        dims
    }

    fn unscoped(&self, keys: &ShapeKeys) -> Vec<Dim> {
        let mut dims = self.shared_dims(keys);
        for layer_idx in 0..self.n_layers {
            dims.extend(self.dims_of_layer(keys, layer_idx));
        }
        dims
    }

    /// Sizes that all layers share.
    pub(crate) fn shared_dims(&self, keys: &ShapeKeys) -> Vec<Dim> {
        let mut dims = vec![
            Dim::new(HIDDEN, self.hidden, &[keys.hidden]).multiple_of(even_step(self.hidden, 8)),
            Dim::new(DEPTH, self.n_layers, &[keys.depth]),
        ];
        if let Some(pairs) = self.rope_pairs {
            let plus = self.head_dim.saturating_sub(2 * pairs);
            let stated = keys.head_dim.map(|key| ConfigKey::Scalar {
                path: key.to_owned(),
                times: 2,
                plus,
            });
            let dim = Dim::new(ROPE_PAIRS, pairs, &[]).stated(stated.into_iter().collect());
            dims.push(dim.multiple_of(step_of_pairs(pairs)));
        }
        dims
    }

    /// Sizes of one layer's attention and MLP.
    pub(crate) fn dims_of_layer(&self, keys: &ShapeKeys, layer_idx: usize) -> Vec<Dim> {
        let mlp = Dim::new(dim_of_layer(MLP, layer_idx), self.mlp, &[keys.mlp]);
        let mut dims = vec![mlp.multiple_of(even_step(self.mlp, 4))];
        let kv_keys: Vec<&str> = keys.kv_heads.into_iter().collect();
        let heads = dim_of_layer(HEADS, layer_idx);
        let kv_heads = dim_of_layer(KV_HEADS, layer_idx);
        if self.is_grouped() {
            let heads = Dim::new(heads, self.n_heads, &[keys.heads]);
            dims.push(heads.partition(kv_heads.clone()));
            dims.push(Dim::new(kv_heads, self.n_kv_heads, &kv_keys));
        } else {
            let all_keys = [&[keys.heads], kv_keys.as_slice()].concat();
            dims.push(Dim::new(heads, self.n_heads, &all_keys));
        }
        dims
    }

    /// The residual stream.
    pub fn stream(&self) -> Side {
        units(HIDDEN, 1)
    }

    /// The inside of an MLP.
    pub fn neurons(&self, layer_idx: usize) -> Side {
        units(dim_of_layer(MLP, layer_idx), 1)
    }

    /// Queries, and what attention's output projection reads.
    pub fn queries(&self, layer_idx: usize) -> Side {
        self.heads(dim_of_layer(HEADS, layer_idx))
    }

    fn heads(&self, dim: String) -> Side {
        match self.rope_pairs {
            None => units(dim, self.head_dim),
            Some(_) => Side(vec![Part::Each {
                dim,
                parts: self.channels().0,
            }]),
        }
    }

    /// The channels of one head: the first of each pair, the second of each pair, then those that
    /// do not turn.
    pub fn channels(&self) -> Side {
        let Some(pairs) = self.rope_pairs else {
            return fixed(self.head_dim);
        };
        let mut parts = [units(ROPE_PAIRS, 1).0, units(ROPE_PAIRS, 1).0].concat();
        let rest = self.head_dim.saturating_sub(2 * pairs);
        parts.extend((rest > 0).then_some(Part::Fixed(rest)));
        Side(parts)
    }

    /// Heads of another width: query, key and value of each in turn.
    pub fn heads_of_width(&self, layer_idx: usize, width: usize) -> Side {
        units(dim_of_layer(HEADS, layer_idx), width)
    }

    /// Keys, and values.
    pub fn keys(&self, layer_idx: usize) -> Side {
        let kind = if self.is_grouped() { KV_HEADS } else { HEADS };
        self.heads(dim_of_layer(kind, layer_idx))
    }
}

/// Values that share a scale in GGUF's Q8_0 and Q4_0: a row that is no multiple stays in 16 bits.
const QUANTISATION_BLOCK: usize = 32;
/// Narrower models keep finer steps.
const MIN_IN_BLOCKS: usize = 256;
/// Largest step that still leaves some dozens of sizes.
const MAX_STEP: usize = 256;

/// Divisibility of a width's student sizes, so that matrix units run full: the largest power of two
/// at most a 64th of the width, at least `least`, at most 256; at least a quantisation block where
/// the width itself consists of them. All shapes of arXiv 2407.14679 and 2408.11796 keep it.
pub fn even_step(full: usize, least: usize) -> usize {
    let power = power_of_two(full / 64);
    let is_of_blocks = full >= MIN_IN_BLOCKS && full.is_multiple_of(QUANTISATION_BLOCK);
    let least = match is_of_blocks {
        true => least.max(QUANTISATION_BLOCK),
        false => least,
    };
    power.clamp(least, MAX_STEP)
}

/// The same for pairs of channels of a head: attention kernels want multiples of 8 channels.
fn step_of_pairs(full: usize) -> usize {
    power_of_two(full / 4).min(4).max(power_of_two(full / 64))
}

/// The largest one up to n; 1 for 0.
fn power_of_two(n: usize) -> usize {
    n.checked_ilog2().map_or(1, |log| 1 << log)
}

/// A size that the config may leave out where there is a default.
fn size_with_default(config: &Config, key: &str, default: Option<usize>) -> Result<usize> {
    match default {
        Some(default) => config.size_or(key, default),
        None => config.size(key),
    }
}

fn at_most(config: &Config, key: &str, size: usize, limit: usize) -> Result<usize> {
    if size <= limit {
        return Ok(size);
    }
    Err(config.error(format!(
        "`{key}`: expected at most {limit}, got {size}; correct config.json"
    )))
}

fn not_a_multiple(config: &Config, whole: (&str, usize), part: (&str, usize)) -> Error {
    config.error(format!(
        "expected `{}` to be a multiple of `{}`, got {} and {}; correct config.json",
        whole.0, part.0, whole.1, part.1
    ))
}
