//! `inspect`: sizes, parameters, memory, legal pruned sizes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::Context;
use crate::blueprint::{Blueprint, DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, Sizes};
use crate::checkpoint::TensorSource;
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
    let folder = context.open(&options.model)?;
    let blueprint = &folder.blueprint;
    let source = &folder.checkpoint.tensors;
    let stored = blueprint.tensors.first().and_then(|t| source.info(&t.name()));
    let space = Space::new(blueprint, &context.axes(&[])?);
    let legal: serde_json::Map<String, Value> = space
        .axes
        .iter()
        .map(|axis| (axis.kind.clone(), json!({ "full": axis.full, "multiple_of": axis.step })))
        .collect();
    let seq_len = options.seq_len.unwrap_or(blueprint.options.max_positions);
    Ok(json!({
        "architecture": blueprint.architecture,
        "n_params": blueprint.n_params(),
        "n_non_embedding": blueprint.n_non_embedding_at(&Sizes::new()),
        "dims": dims(blueprint),
        "memory": {
            "weights_bytes": folder.n_bytes(),
            "dtype": stored.map(|info| format!("{:?}", info.dtype).to_lowercase()),
            "kv_cache_bytes": blueprint.kv_cache_bytes_at(&Sizes::new(), seq_len, options.batch_size),
            "seq_len": seq_len,
            "batch_size": options.batch_size,
        },
        "tied": blueprint.options.tied,
        "max_positions": blueprint.options.max_positions,
        "legal_sizes": legal,
        "hidden_per_head": space.hidden_per_head,
        "unknown_tensors": folder.unknown_tensors,
    }))
}

fn dims(blueprint: &Blueprint) -> Value {
    let heads = blueprint.size(HEADS);
    json!({
        "hidden": blueprint.size(HIDDEN),
        "mlp": blueprint.size(MLP),
        "heads": heads,
        "kv_heads": if blueprint.size(KV_HEADS) == 0 { heads } else { blueprint.size(KV_HEADS) },
        "head_dim": blueprint.options.head_dim,
        "layers": blueprint.size(DEPTH),
        "vocab": blueprint.options.vocab,
    })
}
