//! `prune`: rank, plan, slice, write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{Context, Wanted};
use super::score::scores_path;
use crate::blueprint::{DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, ModelFolder, Sizes};
use crate::calibrate::Scores;
use crate::checkpoint::{OutputDir, TensorSource, WriteOptions, write_model};
use crate::contract::Allocator;
use crate::error::{Error, IoContext, Result};
use crate::memory::{mib, peak_bytes};
use crate::plan::{Bytes, Explained, Plan, Rankings, Space};
use crate::prune::Student;
use crate::registry::PluginSpec;

/// Options of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PruneOptions {
    /// The model.
    pub model: String,
    /// Its scores.
    pub scores: Option<String>,
    /// Residual channels to keep.
    pub hidden: Option<usize>,
    /// Neurons to keep in each layer.
    pub mlp: Option<usize>,
    /// Query heads to keep in each layer.
    pub heads: Option<usize>,
    /// Key/value heads to keep in each layer, each with its query heads.
    pub kv_heads: Option<usize>,
    /// Layers to keep.
    pub layers: Option<usize>,
    /// A budget, for example `4B+-5%`.
    pub params: Option<String>,
    /// Share of the parameters to keep.
    pub ratio: Option<f64>,
    /// Whether `ratio` leaves embeddings and output head out.
    pub non_embedding: bool,
    /// Most bytes that weights and key/value cache may take, for example `8GiB`.
    pub memory: Option<String>,
    /// Tokens per sequence of that cache; the model's positions where not given.
    pub kv_seq_len: Option<usize>,
    /// Sequences of that cache; 1 where not given.
    pub kv_batch_size: Option<usize>,
    /// Another allocator than the sizes, budget, ratio or memory above ask for.
    pub allocator: Option<PluginSpec>,
    /// A finished plan.
    pub plan: Option<PathBuf>,
    /// Axes with parameters of their own; all with defaults where empty.
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim; needed where two scored it. The empty key stands for all kinds.
    pub by: BTreeMap<String, String>,
    /// Replicates of the scores that must be there to say which units survive resampling; all there are where not given.
    pub bootstrap: Option<usize>,
    /// Memory that the process may take, for example `1GiB`; decides nothing about the student.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<Bytes>,
}

impl PruneOptions {
    fn sizes(&self) -> Sizes {
        let sizes = [
            (HIDDEN, self.hidden),
            (MLP, self.mlp),
            (HEADS, self.heads),
            (KV_HEADS, self.kv_heads),
            (DEPTH, self.layers),
        ];
        sizes.into_iter().filter_map(|(kind, size)| Some((kind.to_owned(), size?))).collect()
    }

    fn wanted(&self, folder: &ModelFolder) -> Wanted {
        Wanted {
            sizes: self.sizes(),
            params: self.params.clone(),
            ratio: self.ratio,
            non_embedding: self.non_embedding,
            memory: self.memory.clone(),
            seq_len: self.kv_seq_len,
            batch_size: self.kv_batch_size,
            bytes_per_param: folder.n_bytes() as f64 / folder.blueprint.n_params().max(1) as f64,
        }
    }

    /// Exactly one way to say how large the student shall be.
    fn check(&self) -> Result<()> {
        let measures = [self.params.is_some(), self.ratio.is_some(), self.memory.is_some()];
        let sizes_alone = !self.sizes().is_empty() && !measures.contains(&true);
        let ways = [self.plan.is_some(), self.allocator.is_some(), sizes_alone];
        if ways.iter().chain(&measures).filter(|&&way| way).count() != 1 {
            return Err(Error::Recipe(
                "say once how large the student shall be: sizes (hidden, mlp, heads, kv_heads, layers), params, ratio or \
                 memory (sizes beside them are held), allocator, or plan"
                    .into(),
            ));
        }
        // Checked here as well as by the allocator: JSON, in which it gets its parameters, has no NaN.
        if let Some(ratio) = self.ratio.filter(|ratio| !(*ratio > 0.0 && *ratio <= 1.0)) {
            return Err(Error::Recipe(format!("ratio: expected a share above 0, at most 1, got {ratio}")));
        }
        if self.plan.is_none() && self.scores.is_none() {
            return Err(Error::Recipe("scores: needed to rank by; `minitron score` writes them".into()));
        }
        Ok(())
    }
}

/// Prunes a model into a folder; with `dry_run`, only plans.
pub fn prune(context: &Context, options: &PruneOptions, out: &Path, dry_run: bool) -> Result<Value> {
    options.check()?;
    if !dry_run {
        OutputDir::refuse_existing(out, context.force)?;
    }
    let folder = context.open(&options.model)?;
    let inputs =
        [Some(folder.checkpoint.dir.as_path()), options.plan.as_deref(), options.scores.as_deref().map(Path::new)];
    if !dry_run {
        OutputDir::refuse_inputs(out, inputs.into_iter().flatten())?;
    }
    let (plan, explained) = plan(context, options, &folder)?;
    let student = Student::new(&folder.checkpoint.tensors, &folder.blueprint, &plan, context.registry)?;
    let writing = within(options.max_memory, &folder.checkpoint.tensors)?;
    let mut report = json!({
        "architecture": folder.blueprint.architecture,
        "n_params": student.blueprint.n_params(),
        "n_params_source": folder.blueprint.n_params(),
        "n_non_embedding": folder.blueprint.n_non_embedding_at(&plan.sizes()),
        "n_non_embedding_source": folder.blueprint.n_non_embedding_at(&Sizes::new()),
        "sizes": plan.sizes(),
        "sizes_source": folder.blueprint.sizes(),
        "near_ties": near_ties(&explained),
    });
    if dry_run {
        report["kept"] = json!(plan.kept);
        report["explained"] = json!(explained);
        return Ok(report);
    }
    let output = OutputDir::create(out, context.force)?;
    let companions = Some(folder.checkpoint.dir.as_path());
    write_model(output.path(), &student.config, &student.view, companions, writing)?;
    write_plan(&output.path().join("plan.json"), &plan, &explained, &report)?;
    output.commit()?;
    report["out"] = json!(out);
    Ok(report)
}

/// How to write within a limit: what the process takes by now, and chunks of rows, which the source's rows bound.
///
/// # Errors
/// `Recipe` when the smallest chunks do not fit.
fn within(limit: Option<Bytes>, source: &dyn TensorSource) -> Result<WriteOptions> {
    let Some(Bytes(given)) = limit else { return Ok(WriteOptions::default()) };
    let taken = peak_bytes();
    WriteOptions::within(given.saturating_sub(taken), source).map_err(|least| {
        let needed = mib(taken.saturating_add(least));
        Error::Recipe(format!(
            "max_memory: pruning this model needs {needed} ({} for the program, {} to copy rows), {} were given; \
             give {needed} or more",
            mib(taken),
            mib(least),
            mib(given),
        ))
    })
}

/// The plan, and where scores decided it, why.
fn plan(
    context: &Context,
    options: &PruneOptions,
    folder: &ModelFolder,
) -> Result<(Plan, BTreeMap<String, Explained>)> {
    let blueprint = &folder.blueprint;
    let axes = context.axes(&options.axes)?;
    let space = Space::new(blueprint, &axes);
    if let Some(path) = &options.plan {
        return Ok((Plan::load(path)?.checked(&space, blueprint)?, BTreeMap::new()));
    }
    let path = scores_path(options.scores.as_deref().unwrap_or_default())?;
    let groups = context.groups(&axes, blueprint)?;
    let rankings = Rankings::new(&Scores::load(&path)?, &groups, &options.by)?;
    let spec = options.allocator.clone().unwrap_or_else(|| context.defaults.allocator(&options.wanted(folder)));
    let allocator = context.registry.build::<dyn Allocator>(&spec)?;
    let best = allocator.allocate(&space, &rankings, blueprint)?.into_iter().next();
    let broken = |message: String| Error::Plugin { tag: spec.tag.clone(), origin: "allocator".into(), message };
    let plan = best.ok_or_else(|| broken("gave no plan".into()))?;
    let plan = plan.checked(&space, blueprint).map_err(|e| match e {
        Error::Plan(message) => broken(message),
        other => other,
    })?;
    let explained = plan.explain(&rankings, blueprint, options.bootstrap)?;
    Ok((plan, explained))
}

fn near_ties(explained: &BTreeMap<String, Explained>) -> Vec<&str> {
    explained.iter().filter(|(_, dim)| dim.near_tie).map(|(name, _)| name.as_str()).collect()
}

fn write_plan(path: &Path, plan: &Plan, explained: &BTreeMap<String, Explained>, report: &Value) -> Result<()> {
    let mut value = json!({ "kept": plan.kept });
    for key in ["sizes", "sizes_source", "n_params", "n_params_source"] {
        value[key] = report[key].clone();
    }
    if !explained.is_empty() {
        value["explained"] = json!(explained);
    }
    std::fs::write(path, format!("{value:#}\n")).at_path(path)
}
