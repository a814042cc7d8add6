//! `inspect`: sizes, parameters, memory, legal pruned sizes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clients;
use super::context::Context;
use crate::blueprint::{Blueprint, DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, Sizes};
use crate::checkpoint::{Config, TensorSource, has_weights, held_instead};
use crate::error::Result;
use crate::plan::Space;

/// Options of `inspect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectOptions {
    /// The model.
    pub model: String,
    /// Tokens per sequence of the key/value cache; the model's positions where not given.
    pub seq_len: Option<usize>,
    /// Sequences of the key/value cache.
    pub batch_size: usize,
}

/// Describes a model without loading it.
pub fn inspect(context: &Context, options: &InspectOptions) -> Result<Value> {
    let (blueprint, weights) = open(context, &options.model)?;
    let blueprint = &blueprint;
    let space = Space::new(blueprint, &context.axes(&[])?)?;
    let legal: serde_json::Map<String, Value> = space
        .axes
        .iter()
        .map(|axis| (axis.kind.clone(), json!({ "full": axis.full, "multiple_of": axis.step })))
        .collect();
    let seq_len = options.seq_len.unwrap_or(blueprint.options.max_positions);
    let mut report = json!({
        "architecture": blueprint.architecture,
        "n_params": blueprint.n_params(),
        "n_non_embedding": blueprint.n_non_embedding_at(&Sizes::new()),
        "dims": dims(blueprint),
        "memory": {
            "weights_bytes": weights.n_bytes,
            "dtype": weights.dtype,
            "kv_cache_bytes": blueprint.kv_cache_bytes_at(&Sizes::new(), seq_len, options.batch_size),
            "seq_len": seq_len,
            "batch_size": options.batch_size,
        },
        "tied": blueprint.options.tied,
        "max_positions": blueprint.options.max_positions,
        "legal_sizes": legal,
        "hidden_per_head": space.ties.times(HIDDEN, HEADS),
        "unknown_tensors": weights.unknown_tensors,
    });
    clients::note(context, blueprint, &Sizes::new(), &mut report)?;
    Ok(report)
}

/// What is said of the weights.
pub(super) struct Weights {
    pub n_bytes: u64,
    dtype: Option<String>,
    unknown_tensors: Vec<String>,
}

/// A model's description and its weights; from the config alone where the folder holds no more.
pub(super) fn open(context: &Context, model: &str) -> Result<(Blueprint, Weights)> {
    let dir = (context.resolve)(model)?;
    let config_path = dir.join("config.json");
    if config_path.is_file() && !has_weights(&dir) {
        let config = Config::load(&config_path)?;
        let instead = held_instead(&dir, Some(&config))?.map(|found| format!(" that are read ({found})"));
        let (blueprint, remarks) = Blueprint::of_config(&config, context.registry)?;
        context.say(&remarks);
        let instead = instead.unwrap_or_default();
        context.progress.note(&format!("{model}: no weights{instead}; described from config.json alone"));
        let weights = announced(&blueprint)?;
        return Ok((blueprint, weights));
    }
    let folder = context.open(model)?;
    let source = &folder.checkpoint.tensors;
    let infos = || folder.blueprint.tensors.iter().filter_map(|tensor| source.info(&tensor.name()));
    let weights = Weights {
        n_bytes: infos().filter_map(|info| info.n_bytes()).sum(),
        dtype: infos().next().map(|info| format!("{:?}", info.dtype).to_lowercase()),
        unknown_tensors: folder.unknown_tensors,
    };
    Ok((folder.blueprint, weights))
}

/// What the weights will be by the config: of its type where it names one, in two bytes per parameter where not.
fn announced(blueprint: &Blueprint) -> Result<Weights> {
    let config = &blueprint.config;
    // Newer files call it `dtype`.
    let named = config.word_or("torch_dtype", config.word_or("dtype", "")?)?;
    let (dtype, width) = match named {
        "float32" => (Some("f32"), 4),
        "float16" => (Some("f16"), 2),
        "bfloat16" => (Some("bf16"), 2),
        "" => (None, 2),
        other => (Some(other), 2),
    };
    Ok(Weights {
        n_bytes: blueprint.n_params().saturating_mul(width),
        dtype: dtype.map(str::to_owned),
        unknown_tensors: Vec::new(),
    })
}

fn dims(blueprint: &Blueprint) -> Value {
    let heads = blueprint.size(HEADS);
    json!({
        "hidden": blueprint.size(HIDDEN),
        "mlp": blueprint.size(MLP),
        "heads": heads,
        "kv_heads": if blueprint.size(KV_HEADS) == 0 { heads } else { blueprint.size(KV_HEADS) },
        "head_dim": blueprint.head_dim(),
        "layers": blueprint.size(DEPTH),
        "vocab": blueprint.options.vocab,
    })
}
