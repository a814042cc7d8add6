//! `prune`: rank, plan, slice, heal, write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{Context, Wanted};
use super::score::scores_path;
use super::treatment::{Treatment, note};
use crate::blueprint::{Blueprint, DEPTH, HEADS, HIDDEN, MLP, Sizes};
use crate::calibrate::Scores;
use crate::checkpoint::{MAX_SHARD_BYTES, OutputDir, write_model};
use crate::contract::Allocator;
use crate::error::{Error, IoContext, Result};
use crate::plan::{Plan, Rankings, Space};
use crate::registry::PluginSpec;

/// Options of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
    /// Layers to keep.
    pub layers: Option<usize>,
    /// A budget, for example `4B+-5%`.
    pub params: Option<String>,
    /// Share of the parameters to keep.
    pub ratio: Option<f64>,
    /// Whether `ratio` leaves embeddings and output head out.
    pub non_embedding: bool,
    /// Another allocator than the sizes, budget or ratio above ask for.
    pub allocator: Option<PluginSpec>,
    /// A finished plan.
    pub plan: Option<PathBuf>,
    /// Axes with parameters of their own; all with defaults where empty.
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim; needed where two scored it. The empty key stands for all kinds.
    pub by: BTreeMap<String, String>,
    /// Healings and their text.
    #[serde(flatten)]
    pub treatment: Treatment,
}

impl PruneOptions {
    fn wanted(&self) -> Wanted {
        let sizes = [(HIDDEN, self.hidden), (MLP, self.mlp), (HEADS, self.heads), (DEPTH, self.layers)];
        let sizes: Sizes = sizes.into_iter().filter_map(|(kind, size)| Some((kind.to_owned(), size?))).collect();
        Wanted { sizes, params: self.params.clone(), ratio: self.ratio, non_embedding: self.non_embedding }
    }

    /// Exactly one way to say how large the student shall be.
    fn check(&self) -> Result<()> {
        let wanted = self.wanted();
        let ways = [
            self.plan.is_some(),
            self.allocator.is_some(),
            self.params.is_some(),
            self.ratio.is_some(),
            !wanted.sizes.is_empty() && self.params.is_none() && self.ratio.is_none(),
        ];
        if ways.iter().filter(|&&way| way).count() != 1 {
            return Err(Error::Recipe(
                "say once how large the student shall be: sizes (hidden, mlp, heads, layers), params or ratio \
                 (sizes beside them are held), allocator, or plan"
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

/// Prunes a model into a folder and heals it; with `dry_run`, writes nothing.
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
    options.treatment.build(context)?;
    let windows = options.treatment.windows(context, &folder, (!dry_run).then_some(out))?;
    let (plan, rankings) = plan(context, options, &folder.blueprint)?;
    let patient = options.treatment.patient(context, &folder, (plan, rankings.as_ref()), windows.as_ref())?;
    let plan = patient.plan();
    let mut report = json!({
        "architecture": folder.blueprint.architecture,
        "n_params": patient.blueprint().n_params(),
        "n_params_source": folder.blueprint.n_params(),
        "n_non_embedding": folder.blueprint.n_non_embedding_at(&plan.sizes()),
        "n_non_embedding_source": folder.blueprint.n_non_embedding_at(&Sizes::new()),
        "sizes": plan.sizes(),
        "sizes_source": folder.blueprint.sizes(),
    });
    note(&patient, &mut report);
    if dry_run {
        report["kept"] = json!(plan.kept);
        return Ok(report);
    }
    let output = OutputDir::create(out, context.force)?;
    let companions = Some(folder.checkpoint.dir.as_path());
    write_model(output.path(), patient.config(), &patient.student()?, companions, MAX_SHARD_BYTES)?;
    write_plan(&output.path().join("plan.json"), plan, &report)?;
    output.commit()?;
    report["out"] = json!(out);
    Ok(report)
}

/// The plan, and the rankings where scores were given.
fn plan(context: &Context, options: &PruneOptions, blueprint: &Blueprint) -> Result<(Plan, Option<Rankings>)> {
    let axes = context.axes(&options.axes)?;
    let space = Space::new(blueprint, &axes);
    let groups = context.groups(&axes, blueprint)?;
    let rank = |scores: &String| Rankings::new(&Scores::load(&scores_path(scores)?)?, &groups, &options.by);
    let rankings = options.scores.as_ref().map(rank).transpose()?;
    if let Some(path) = &options.plan {
        return Ok((Plan::load(path)?.checked(&space, blueprint)?, rankings));
    }
    let rankings = rankings.unwrap_or_default();
    let spec = options.allocator.clone().unwrap_or_else(|| context.defaults.allocator(&options.wanted()));
    let allocator = context.registry.build::<dyn Allocator>(&spec)?;
    let best = allocator.allocate(&space, &rankings, blueprint)?.into_iter().next();
    let broken = |message: String| Error::Plugin { tag: spec.tag.clone(), origin: "allocator".into(), message };
    let plan = best.ok_or_else(|| broken("gave no plan".into()))?;
    match plan.checked(&space, blueprint) {
        Err(Error::Plan(message)) => Err(broken(message)),
        other => Ok((other?, Some(rankings))),
    }
}

fn write_plan(path: &Path, plan: &Plan, report: &Value) -> Result<()> {
    let mut value = json!({ "kept": plan.kept });
    for key in ["sizes", "sizes_source", "n_params", "n_params_source"] {
        value[key] = report[key].clone();
    }
    for key in ["healed", "hidden_basis"] {
        if let Some(found) = report.get(key) {
            value[key] = found.clone();
        }
    }
    std::fs::write(path, format!("{value:#}\n")).at_path(path)
}
