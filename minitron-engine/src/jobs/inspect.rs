//! `inspect`: sizes, parameters, memory, legal pruned sizes.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::clients;
use super::context::Context;
use super::forecast::{ForecastOptions, forecast};
use minitron_core::checkpoint::{Config, TensorSource, has_weights, held_instead};
use minitron_core::error::Result;
use minitron_core::plan::Space;
use minitron_core::spec::{
    DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, ModelSpec, ROPE_PAIRS, Sizes, dim_of_layer, split_dim,
};

/// Kinds that most layers have.
const DENSE: [&str; 3] = [MLP, HEADS, KV_HEADS];

/// Options of `inspect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct InspectOptions {
    /// Folder or hub id: org/name or org/name@revision.
    pub model: String,
    /// Tokens per sequence of the key/value cache [default: the model's positions]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Sequences of the key/value cache, and windows of a training step.
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
    /// A distillation to be.
    #[serde(flatten)]
    #[command(flatten)]
    pub forecast: ForecastOptions,
}

/// Describes a model without loading it; one without weights from its config alone.
///
/// ```
/// use minitron_core::registry::Registry;
/// use minitron_engine::jobs::{Context, InspectOptions, inspect};
///
/// # fn main() -> minitron_core::error::Result<()> {
/// minitron_plugins::link();
/// let registry = Registry::linked()?;
/// let context = Context::on_cpu(&registry, &minitron_plugins::BuiltIn);
/// let options = InspectOptions {
///     model: "../examples/demo".into(),
///     seq_len: None,
///     batch_size: 1,
///     forecast: Default::default(),
/// };
/// let about = inspect(&context, &options)?;
/// assert_eq!(about["architecture"], "llama");
/// assert_eq!(about["dims"]["heads"], 8);
/// # Ok(())
/// # }
/// ```
pub fn inspect(context: &Context, options: &InspectOptions) -> Result<Value> {
    let (spec, weights) = open(context, &options.model)?;
    let spec = &spec;
    let space = Space::new(spec, &context.axes(&[])?)?;
    let mut legal = Map::new();
    for axis in &space.axes {
        let sizes = json!({ "full": axis.full, "multiple_of": axis.step });
        legal.insert(axis.kind.clone(), sizes);
    }
    let seq_len = options.seq_len.unwrap_or(spec.options.max_positions);
    let mut report = json!({
        "architecture": spec.architecture,
        "n_params": spec.n_params(),
        "n_non_embedding": spec.n_non_embedding_at(&Sizes::new()),
        "dims": dims(spec),
        "memory": {
            "weights_bytes": weights.n_bytes,
            "dtype": weights.dtype,
            "kv_cache_bytes": spec.kv_cache_bytes_at(&Sizes::new(), seq_len, options.batch_size),
            "seq_len": seq_len,
            "batch_size": options.batch_size,
        },
        "tied": spec.options.tied,
        "max_positions": spec.options.max_positions,
        "legal_sizes": legal,
        "hidden_per_head": space.ties.times(HIDDEN, HEADS),
        "unknown_tensors": weights.unknown_tensors,
    });
    if let Some(by_layer) = by_layer(spec) {
        report["by_layer"] = by_layer;
    }
    if spec.has_idle() {
        report["n_active"] = json!(spec.n_active_at(&Sizes::new()));
    }
    if let Some(n_ranks) = options.forecast.ranks {
        let teacher = options.forecast.teacher.as_ref();
        let teacher = teacher.map(|model| open(context, model)).transpose()?;
        let models = (spec, teacher.as_ref().map(|(spec, _)| spec));
        let shape = (options.batch_size, seq_len);
        report["training"] = forecast(context, &options.forecast, models, shape, n_ranks)?;
    }
    clients::note(spec, &Sizes::new(), &mut report);
    Ok(report)
}

/// What is said of the weights.
pub(crate) struct WeightSummary {
    pub n_bytes: u64,
    dtype: Option<String>,
    unknown_tensors: Vec<String>,
}

/// A model's description and its weights; from the config alone where the folder holds no more.
pub(crate) fn open(context: &Context, model: &str) -> Result<(ModelSpec, WeightSummary)> {
    let dir = (context.resolve)(model)?;
    let config_path = dir.join("config.json");
    if config_path.is_file() && !has_weights(&dir) {
        let config = Config::load(&config_path)?;
        let instead =
            held_instead(&dir, Some(&config))?.map(|found| format!(" that are read ({found})"));
        let (spec, remarks) = ModelSpec::of_config(&config, context.registry)?;
        context.say(&remarks);
        let instead = instead.unwrap_or_default();
        context.progress.note(&format!(
            "{model}: no weights{instead}; described from config.json alone"
        ));
        let weights = announced(&spec)?;
        return Ok((spec, weights));
    }
    let folder = context.open(model)?;
    let source = &folder.checkpoint.tensors;
    let (mut n_bytes, mut dtype) = (0_u64, None);
    for tensor in &folder.spec.params {
        if let Some(info) = source.info(&tensor.name()) {
            n_bytes += info.n_bytes().unwrap_or(0);
            dtype.get_or_insert(info.dtype);
        }
    }
    let weights = WeightSummary {
        n_bytes,
        dtype: dtype.map(|dtype| format!("{dtype:?}").to_lowercase()),
        unknown_tensors: folder.unknown_tensors,
    };
    Ok((folder.spec, weights))
}

/// What the weights will be by the config: of its type where it names one, in two bytes per
/// parameter where not.
fn announced(spec: &ModelSpec) -> Result<WeightSummary> {
    let config = &spec.config;
    // Newer files call it `dtype`.
    let named = config.word_or("torch_dtype", config.word_or("dtype", "")?)?;
    let (dtype, width) = match named {
        "float32" => (Some("f32"), 4),
        "float16" => (Some("f16"), 2),
        "bfloat16" => (Some("bf16"), 2),
        "" => (None, 2),
        other => (Some(other), 2),
    };
    Ok(WeightSummary {
        n_bytes: spec.n_params().saturating_mul(width),
        dtype: dtype.map(str::to_owned),
        unknown_tensors: Vec::new(),
    })
}

/// Sizes by kind: those that most models have, then those of others.
fn dims(spec: &ModelSpec) -> Value {
    let heads = spec.size(HEADS);
    let mut dims = json!({
        "hidden": spec.size(HIDDEN),
        "mlp": spec.size(MLP),
        "heads": heads,
        "kv_heads": if spec.size(KV_HEADS) == 0 { heads } else { spec.size(KV_HEADS) },
        "head_dim": spec.head_dim(),
        "layers": spec.size(DEPTH),
        "vocab": spec.options.vocab,
    });
    // What else layers are made of: the heads of their Mamba mixers.
    for dim in spec.dims.values() {
        let kind = split_dim(&dim.name).0;
        if ![DEPTH, ROPE_PAIRS].contains(&kind) && dims.get(kind).is_none() {
            dims[kind] = dim.size.into();
        }
    }
    dims
}

/// Sizes layer by layer, 0 where a part is not there; none where layers are alike.
fn by_layer(spec: &ModelSpec) -> Option<Value> {
    let sizes = spec.sizes();
    let mut names = sizes.keys().map(|name| split_dim(name));
    let differs = |(kind, layer): (&str, Option<usize>)| layer.is_some() && DENSE.contains(&kind);
    if !names.any(differs) && !spec.has_absent() {
        return None;
    }
    let mut found = Map::new();
    for kind in DENSE.into_iter().filter(|kind| spec.size(kind) > 0) {
        let layers = (0..spec.n_layers()).map(|layer| dim_of_layer(kind, layer));
        let sizes = layers.map(|name| spec.dims.get(&name).map_or(0, |dim| dim.size));
        found.insert(kind.to_owned(), sizes.collect());
    }
    Some(Value::Object(found))
}
