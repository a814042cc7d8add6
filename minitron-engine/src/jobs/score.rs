//! `score`: one calibration pass, all metrics at once.

use std::path::{Path, PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{Context, at_least_1, seq_len_or_default};
use super::identity::identity_of;
use crate::data::{DataSpec, TextOptions, WindowSampling, files_of};
use crate::score::{self, Metric};
use minitron_core::calibrate::{NamedMetric, Scores};
use minitron_core::checkpoint::{Identity, Reader};
use minitron_core::contract::Importance;
use minitron_core::digest;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::output::{OutputDir, OutputLock};
use minitron_core::plan::Bytes;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelFolder;
use minitron_core::windows::Windows;

/// Options of `score`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct ScoreOptions {
    /// Folder or hub id.
    pub model: String,
    /// Calibration text: FILE, or FILE#a..b for some of its documents.
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<DataSpec>,
    /// A metric, `name:key=value,as=LABEL` [default: activation, block_influence]
    #[arg(long = "metric")]
    #[schemars(extend("plugins" = ["importance"]))]
    pub metrics: Vec<PluginSpec>,
    /// Windows used.
    #[arg(long, default_value_t = Self::default().samples)]
    pub samples: usize,
    /// Which windows: the `first` ones, or `spread` over the text.
    #[arg(long, default_value = "first")]
    pub sampling: WindowSampling,
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Windows per forward pass.
    #[arg(long, default_value_t = Self::default().batch_size)]
    pub batch_size: usize,
    /// How the text is read.
    #[serde(flatten)]
    #[command(flatten)]
    pub text: TextOptions,
    /// Store scores of so many resamples of the windows too, for plans that say how close their
    /// calls were.
    #[arg(long, default_value_t = Self::default().bootstrap)]
    pub bootstrap: usize,
    /// Hold one layer at a time; an interrupted scoring goes on at the layer it had reached.
    #[arg(long)]
    pub stream: bool,
    /// Memory that the process may take, `2GiB`: batches shrink to keep it.
    #[arg(long)]
    pub max_memory: Option<Bytes>,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        ScoreOptions {
            model: String::new(),
            data: Vec::new(),
            metrics: Vec::new(),
            samples: 1024,
            sampling: WindowSampling::First,
            seq_len: None,
            batch_size: 8,
            text: TextOptions::default(),
            bootstrap: 0,
            stream: false,
            max_memory: None,
        }
    }
}

/// Scores a model and writes the file.
pub fn score(context: &Context, options: &ScoreOptions, out: &Path) -> Result<Value> {
    context.ranks.first(|| check_out(context, out))?;
    check(options)?;
    let metrics = metrics(context, &options.metrics)?;
    let folder = context.open(&options.model)?;
    refuse_out(out, &folder.checkpoint.dir)?;
    let own = identity_of(&folder)?;
    let groups = context.groups(&context.axes(&[])?, &folder.spec)?;
    let tokenizer = context.reader(&folder, &options.text)?;
    let seq_len = seq_len_or_default(options.seq_len, &folder.spec, &tokenizer);
    let n_samples = Some(options.samples);
    let reading = options.text.reading(seq_len, n_samples, context.seed);
    let reading = reading.sampled(options.sampling);
    let files = files_of(&options.data, context.registry, &reading)?;
    OutputDir::refuse_inputs(out, files.iter().map(PathBuf::as_path))?;
    let mut _claim = None;
    context.ranks.first(|| {
        _claim = Some(OutputLock::of(out)?);
        Ok(())
    })?;
    let windows = reading.windows(&options.data, &tokenizer, context.registry)?;
    context.warn_of_date(&tokenizer);
    windows.check_fits(&folder.spec.options)?;
    let identity = match options.stream || context.ranks.has_others() {
        true => identity(context, options, (&folder, &own), &windows)?,
        false => Value::Null,
    };
    context.ranks.same("scoring", &identity)?;
    let (source, pruned) = (
        &folder.checkpoint.tensors,
        (&folder.spec, groups.as_slice()),
    );
    let mut inputs = context.score_inputs(source, pruned, &tokenizer, &windows);
    // One that holds more windows than there are is as large as they are.
    inputs.batch_size = options.batch_size.min(windows.len()).max(1);
    inputs.max_memory = options.max_memory.map(|bytes| bytes.0);
    inputs.bootstrap = options.bootstrap;
    inputs.ranks = context.ranks;
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let beside = out.with_file_name(format!(".{name}.streamed"));
    let digest = match options.stream {
        true => fingerprint(&identity, &folder)?,
        false => String::new(),
    };
    if options.stream {
        inputs.activations = Some((beside.as_path(), digest.as_str()));
    }
    let begin = std::time::Instant::now();
    let mut scores = score::score(&inputs, metrics)?;
    (scores.model, scores.data) = (Some(own), Some(windows.digest().to_owned()));
    context.ranks.first(|| scores.save(out))?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(summary(&scores, out, &windows, seconds))
}

/// What can be refused by looking at the output alone.
fn check_out(context: &Context, out: &Path) -> Result<()> {
    OutputDir::refuse_existing(out, context.force)?;
    if out.is_file() && Reader::open_file(out).is_err() {
        return Err(Error::Recipe(format!(
            "the output `{}` is a file that holds no scores; give another name, or remove it \
             yourself",
            out.display()
        )));
    }
    Ok(())
}

/// What can be refused by looking at the options alone.
fn check(options: &ScoreOptions) -> Result<()> {
    at_least_1("batch_size", options.batch_size)?;
    let n = options.bootstrap;
    if n > MAX_REPLICATES {
        return Err(Error::Recipe(format!(
            "bootstrap: expected at most {MAX_REPLICATES} replicates, got {n}"
        )));
    }
    Ok(())
}

/// Beyond what any share of resamples needs; each holds all scores once more.
const MAX_REPLICATES: usize = 100_000;

/// All that decides the scores, wherever the files lie.
fn identity(
    context: &Context,
    options: &ScoreOptions,
    (folder, own): (&ModelFolder, &Identity),
    windows: &Windows,
) -> Result<Value> {
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": { "config": folder.checkpoint.config.to_value(), "weights": own.weights },
        "data": windows.digest(),
        "settings": {
            "metrics": options.metrics,
            "batch_size": options.batch_size,
            "bootstrap": options.bootstrap,
            "stream": options.stream,
            "max_memory": options.max_memory,
            "dtype": format!("{:?}", context.kind),
            "seed": context.seed,
        },
        "plugins": {
            "libraries": context.registry.libraries(),
            "files": PluginSpec::digests(&options.metrics)?,
        },
    }))
}

/// Of all that the scores follow from here; weights by their identity and their files' sizes and
/// times, since hashing them whole takes longer than a layer.
fn fingerprint(identity: &Value, folder: &ModelFolder) -> Result<String> {
    let mut weights = Vec::new();
    for path in folder.checkpoint.tensors.paths() {
        let about = std::fs::metadata(path).at_path(path)?;
        let changed = about.modified().ok();
        let changed = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let changed = changed.map(|since| since.as_nanos().to_string());
        weights.push(json!([path, about.len(), changed]));
    }
    Ok(digest::of_text(&json!([identity, weights]).to_string()))
}

/// Scores must not take the place of a folder, nor of a file of the model.
fn refuse_out(out: &Path, model_dir: &Path) -> Result<()> {
    OutputDir::refuse_inputs(out, [model_dir])?;
    let place = out.canonicalize().ok();
    let place = place.as_deref().and_then(Path::parent);
    let is_inside = model_dir
        .canonicalize()
        .is_ok_and(|dir| place == Some(dir.as_path()));
    if out.is_dir() || is_inside {
        let message = format!(
            "`{}` is a folder or a file of the model; name another file for the scores",
            out.display()
        );
        return Err(Error::Recipe(message));
    }
    Ok(())
}

pub(crate) fn metrics(context: &Context, named: &[PluginSpec]) -> Result<Vec<Metric>> {
    let specs = if named.is_empty() {
        context.defaults.metrics()
    } else {
        named.to_vec()
    };
    let mut metrics = Vec::new();
    for (idx, spec) in specs.into_iter().enumerate() {
        let stated = NamedMetric::new(spec)?;
        let importance = context.registry.build::<dyn Importance>(&stated.spec);
        let importance = importance.map_err(|e| match named.is_empty() {
            true => e,
            false => e.at(format!("metrics[{idx}]")),
        })?;
        metrics.push(Metric {
            label: stated.label,
            importance,
        });
    }
    Ok(metrics)
}

fn summary(scores: &Scores, out: &Path, windows: &Windows, seconds: f64) -> Value {
    let mut rows = Vec::with_capacity(scores.by_name.len());
    for (name, values) in &scores.by_name {
        let min = values.iter().copied().fold(f32::INFINITY, f32::min);
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        rows.push(json!({ "name": name, "n_units": values.len(), "min": min, "max": max }));
    }
    let n_tokens = windows.n_tokens();
    json!({
        "out": out,
        "n_samples": windows.len(),
        "n_tokens": n_tokens,
        "seconds": seconds,
        "tokens_per_second": n_tokens as f64 / seconds.max(1e-9),
        "scores": rows,
    })
}

/// Loads a scores file, given itself or the folder of a stage that wrote it.
pub(crate) fn scores_path(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let inside = path.join("scores.safetensors");
    let found = if path.is_dir() {
        inside
    } else {
        path.to_path_buf()
    };
    if found.is_file() {
        return Ok(found);
    }
    Err(Error::checkpoint(
        found,
        "no such scores file; `minitron score` writes one",
    ))
}
