//! Families of transformers: each a table of tensors, and the config keys that give their sizes.

mod bert;
mod gpt2;
mod llama;
mod nemotron;

use minitron_core::blueprint::{
    Activation, DEPTH, Dim, HEADS, HIDDEN, KV_HEADS, MLP, Role, Rotary, RotaryScaling, Side, Table, dim_of_layer, units,
};
use minitron_core::checkpoint::Config;
use minitron_core::error::{Error, Result};

/// Beyond any trained model; a config that says more would only make us allocate.
const MAX_LAYERS: usize = 4096;
/// The rotary table has a row for each position.
const MAX_POSITIONS: usize = 1 << 20;

/// Where a family's config states its sizes.
struct Keys {
    hidden: &'static str,
    mlp: &'static str,
    heads: &'static str,
    kv_heads: Option<&'static str>,
    head_dim: Option<&'static str>,
    depth: &'static str,
    positions: &'static str,
}

/// The sizes themselves, checked against each other.
struct Shape {
    hidden: usize,
    mlp: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    n_layers: usize,
    vocab: usize,
    max_positions: usize,
}

impl Shape {
    /// `mlp` and `positions` stand in where the config leaves those keys out.
    fn read(config: &Config, keys: &Keys, mlp: Option<usize>, positions: Option<usize>) -> Result<Self> {
        let or = |key, default: Option<usize>| default.map_or_else(|| config.size(key), |n| config.size_or(key, n));
        let hidden = config.size(keys.hidden)?;
        let n_heads = config.size(keys.heads)?;
        let n_kv_heads = keys.kv_heads.map_or(Ok(n_heads), |key| config.size_or(key, n_heads))?;
        if n_heads % n_kv_heads != 0 {
            let kv_key = keys.kv_heads.unwrap_or(keys.heads);
            return Err(not_a_multiple(config, (keys.heads, n_heads), (kv_key, n_kv_heads)));
        }
        let head_dim = match keys.head_dim.map_or(Ok(None), |key| config.size_opt(key))? {
            Some(head_dim) => head_dim,
            None if hidden % n_heads == 0 => hidden / n_heads,
            None => return Err(not_a_multiple(config, (keys.hidden, hidden), (keys.heads, n_heads))),
        };
        Ok(Shape {
            hidden,
            mlp: or(keys.mlp, mlp)?,
            n_heads,
            n_kv_heads,
            head_dim,
            n_layers: at_most(config, keys.depth, config.size(keys.depth)?, MAX_LAYERS)?,
            vocab: config.size("vocab_size")?,
            max_positions: at_most(config, keys.positions, or(keys.positions, positions)?, MAX_POSITIONS)?,
        })
    }

    fn is_grouped(&self) -> bool {
        self.n_kv_heads < self.n_heads
    }

    /// Every named size, layer after layer.
    fn dims(&self, keys: &Keys) -> Vec<Dim> {
        let mut dims = vec![
            Dim::new(HIDDEN, self.hidden, &[keys.hidden]).multiple_of(even_step(self.hidden, 8)),
            Dim::new(DEPTH, self.n_layers, &[keys.depth]),
        ];
        for layer_idx in 0..self.n_layers {
            let of_layer = |kind| dim_of_layer(kind, layer_idx);
            dims.push(Dim::new(of_layer(MLP), self.mlp, &[keys.mlp]).multiple_of(even_step(self.mlp, 4)));
            let kv_keys: Vec<&str> = keys.kv_heads.into_iter().collect();
            if self.is_grouped() {
                let heads = Dim::new(of_layer(HEADS), self.n_heads, &[keys.heads]);
                dims.push(heads.partition(of_layer(KV_HEADS)));
                dims.push(Dim::new(of_layer(KV_HEADS), self.n_kv_heads, &kv_keys));
            } else {
                let all_keys = [&[keys.heads], kv_keys.as_slice()].concat();
                dims.push(Dim::new(of_layer(HEADS), self.n_heads, &all_keys));
            }
        }
        dims
    }

    /// The residual stream.
    fn stream(&self) -> Side {
        units(HIDDEN, 1)
    }

    /// The inside of an MLP.
    fn neurons(&self, layer_idx: usize) -> Side {
        units(dim_of_layer(MLP, layer_idx), 1)
    }

    /// Queries, and what attention's output projection reads.
    fn queries(&self, layer_idx: usize) -> Side {
        units(dim_of_layer(HEADS, layer_idx), self.head_dim)
    }

    /// Keys, and values.
    fn keys(&self, layer_idx: usize) -> Side {
        let kind = if self.is_grouped() { KV_HEADS } else { HEADS };
        units(dim_of_layer(kind, layer_idx), self.head_dim)
    }
}

/// Largest step that still leaves some dozens of sizes.
const MAX_STEP: usize = 256;

/// Divisibility of a width's student sizes, so that matrix units run full: the largest power of two at most a 64th of the
/// width, at least `least`, at most 256. All shapes of arXiv 2407.14679 and 2408.11796 keep it.
fn even_step(full: usize, least: usize) -> usize {
    let power = (full / 64).checked_ilog2().map_or(1, |log| 1 << log);
    power.clamp(least, MAX_STEP)
}

/// Four projections under the names that Llama gave them.
fn split_attention(table: &mut Table, shape: &Shape, layer_idx: usize, bias: bool) {
    let (queries, keys) = (shape.queries(layer_idx), shape.keys(layer_idx));
    table
        .linear("layers.{l}.self_attn.q_proj", Role::Query, queries.clone(), shape.stream(), bias)
        .linear("layers.{l}.self_attn.k_proj", Role::Key, keys.clone(), shape.stream(), bias)
        .linear("layers.{l}.self_attn.v_proj", Role::Value, keys, shape.stream(), bias)
        .linear("layers.{l}.self_attn.o_proj", Role::AttentionOutput, shape.stream(), queries, bias);
}

/// Rotary options, stated as `rope_parameters`, or in the older way as `rope_theta` and `rope_scaling`.
///
/// The older key goes first where both are there, as in `transformers`.
fn rotary(config: &Config, shape: &Shape, partial: f64) -> Result<Rotary> {
    let (place, nested) =
        match config.nested("rope_scaling")?.filter(|nested| nested.to_value() != serde_json::json!({})) {
            Some(nested) => ("rope_scaling", Some(nested)),
            None => ("rope_parameters", config.nested("rope_parameters")?),
        };
    let number = |key: &str, default: Option<f64>| -> Result<f64> {
        let source = nested.as_ref().filter(|nested| nested.get(key).is_some()).unwrap_or(config);
        let value = source.number_or(key, default.unwrap_or(f64::NAN))?;
        if value > 0.0 {
            return Ok(value);
        }
        let got = if value.is_nan() { "nothing".to_owned() } else { value.to_string() };
        Err(config.error(format!("`{place}.{key}`: expected a number above 0, got {got}; correct config.json")))
    };
    let kind = match &nested {
        Some(nested) => nested.word_or("rope_type", nested.word_or("type", "default")?)?,
        None => "default",
    };
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: number("factor", None)? },
        "llama3" => {
            let (low, high) = (number("low_freq_factor", None)?, number("high_freq_factor", None)?);
            if high <= low {
                let message =
                    format!("`{place}`: expected `high_freq_factor` above `low_freq_factor`, got {high} and {low}");
                return Err(config.error(message));
            }
            RotaryScaling::Llama3 {
                factor: number("factor", None)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: number("original_max_position_embeddings", Some(shape.max_positions as f64))?,
            }
        }
        other => {
            let known = "supported: default, linear, llama3";
            return Err(config.error(format!("`{place}`: rope type `{other}` is not supported; {known}")));
        }
    };
    let partial = number("partial_rotary_factor", Some(partial))?;
    let n_rotated = (shape.head_dim as f64 * partial) as usize;
    if partial > 1.0 || n_rotated == 0 || !n_rotated.is_multiple_of(2) {
        return Err(config.error(format!(
            "the rotary embedding turns {n_rotated} of {} channels of a head (`head_dim` x `partial_rotary_factor`); \
             expected an even number from 2 to all of them",
            shape.head_dim
        )));
    }
    Ok(Rotary { theta: number("rope_theta", Some(10_000.0))?, n_rotated, scaling })
}

fn is_type(config: &Config, model_type: &str) -> bool {
    config.model_type().is_ok_and(|found| found == model_type)
}

/// The blame for an unknown word lies with the config, not with a recipe.
fn activation(config: &Config, key: &str, default: &str) -> Result<Activation> {
    Activation::parse(config.word_or(key, default)?).map_err(|error| match error {
        Error::Recipe(message) => config.error(format!("`{key}`: {message}")),
        other => other,
    })
}

/// Refuses the value of a switch that our blocks do not have.
fn only(config: &Config, key: &str, supported: bool) -> Result<()> {
    if config.flag_or(key, supported)? == supported {
        return Ok(());
    }
    let message = format!("`{key}`: expected {supported}, got {}; this variant is not supported", !supported);
    Err(config.error(message))
}

fn at_most(config: &Config, key: &str, size: usize, limit: usize) -> Result<usize> {
    if size <= limit {
        return Ok(size);
    }
    Err(config.error(format!("`{key}`: expected at most {limit}, got {size}; correct config.json")))
}

fn not_a_multiple(config: &Config, whole: (&str, usize), part: (&str, usize)) -> Error {
    config.error(format!(
        "expected `{}` to be a multiple of `{}`, got {} and {}; correct config.json",
        whole.0, part.0, whole.1, part.1
    ))
}
