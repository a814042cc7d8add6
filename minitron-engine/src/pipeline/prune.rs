//! `prune`: rank, plan, slice, reconstruct, write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::card::{Before, Card, facts, name_of};
use super::clients;
use super::context::{Context, SizeRequest};
use super::identity::identity_of;
use super::planning::{Decision, decide};
use super::reconstruction::{ReconstructOptions, note};
use super::student::Written;
use crate::memory::{mib, peak_bytes};
use minitron_core::checkpoint::{Identity, TensorSource, WriteOptions};
use minitron_core::error::{Error, Result};
use minitron_core::output::{OutputDir, OutputLock, write_atomic};
use minitron_core::plan::{Bytes, Explained, Plan};
use minitron_core::prune::{ModuleChanges, Student};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, ModelFolder, ModelSpec, Sizes};

/// Beyond the steps that any axis has; each scores the text anew.
const MAX_ROUNDS: usize = 1000;

/// Options of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Key/value heads to keep in each layer, each with its query heads.
    pub kv_heads: Option<usize>,
    /// Layers to keep.
    pub layers: Option<usize>,
    /// Sizes by kind of dim, of any that an axis of the model names; those above are the same for some kinds.
    pub size: BTreeMap<String, usize>,
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
    /// Whether the hidden width is to be heads x head_dim: some programs that load students want it.
    pub square: bool,
    /// A finished plan.
    pub plan: Option<PathBuf>,
    /// Axes with parameters of their own; all with defaults where empty.
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim; needed where two scored it. The empty key stands for all kinds.
    pub by: BTreeMap<String, String>,
    /// Replicates of the scores that must be there to say which units survive resampling; all there are where not given.
    pub bootstrap: Option<usize>,
    /// Rounds of scoring and pruning; above 1, `metrics` score the data anew after each.
    pub rounds: usize,
    /// Metrics of later rounds; the defaults where empty.
    pub metrics: Vec<PluginSpec>,
    /// Memory that the process may take, for example `1GiB`; decides nothing about the student.
    pub max_memory: Option<Bytes>,
    /// Whether scores and a plan of another model are taken, with a warning.
    pub any_model: bool,
    /// Reconstructions and their text.
    #[serde(flatten)]
    pub reconstruction: ReconstructOptions,
}

impl PruneOptions {
    /// Every size that is asked for.
    ///
    /// # Errors
    /// `Recipe` for a kind with two sizes.
    pub(super) fn sizes(&self) -> Result<Sizes> {
        let short = [
            ("hidden", self.hidden),
            ("mlp", self.mlp),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("layers", self.layers),
        ];
        let short = short.into_iter().filter_map(|(option, size)| Some((option, size?)));
        let all = short.chain(self.size.iter().map(|(kind, &size)| (kind.as_str(), size)));
        let mut sizes = Sizes::new();
        for (kind, size) in all {
            let before = sizes.insert(kind_of(kind).to_owned(), size);
            if let Some(before) = before.filter(|before| *before != size) {
                return Err(Error::Recipe(format!(
                    "size: `{kind}` is given twice, {before} and {size}; give one of them"
                )));
            }
        }
        Ok(sizes)
    }

    pub(super) fn wanted(&self, folder: &ModelFolder) -> Result<SizeRequest> {
        Ok(SizeRequest {
            sizes: self.sizes()?,
            params: self.params.clone(),
            ratio: self.ratio,
            non_embedding: self.non_embedding,
            memory: self.memory.clone(),
            seq_len: self.kv_seq_len,
            batch_size: self.kv_batch_size,
            bytes_per_param: folder.n_bytes() as f64 / folder.spec.n_params().max(1) as f64,
        })
    }

    fn card(&self, context: &Context, folder: &ModelFolder) -> Result<Card> {
        const SIZED_BY: &str = "params ratio non_embedding memory square allocator axes by plan";
        let looks_at_text = match self.reconstruction.heal.is_empty() && self.rounds <= 1 {
            true => "seed",
            false => "rounds metrics heal data samples seq_len seed",
        };
        let mut told = serde_json::to_value(self).unwrap_or_default();
        told["seed"] = json!(context.seed);
        told["rounds"] = json!((self.rounds > 1).then_some(self.rounds));
        let facts = facts(&told, &format!("{SIZED_BY} {looks_at_text}"));
        let dir = &folder.checkpoint.dir;
        Card::new("prune", Some(&name_of(&self.model, dir)), dir, &folder.spec, facts)
    }

    /// Exactly one way to say how large the student shall be.
    fn check(&self) -> Result<()> {
        let measures = [self.params.is_some(), self.ratio.is_some(), self.memory.is_some()];
        let sizes_alone = !self.sizes()?.is_empty() && !measures.contains(&true);
        let ways = [self.plan.is_some(), self.allocator.is_some(), sizes_alone];
        if ways.iter().chain(&measures).filter(|&&way| way).count() != 1 {
            return Err(Error::Recipe(
                "say once how large the student shall be: sizes (hidden, mlp, heads, kv_heads, layers, size), params, ratio \
                 or memory (sizes beside them are held), allocator, or plan"
                    .into(),
            ));
        }
        // Checked here as well as by the allocator: JSON, in which it gets its parameters, has no NaN.
        if let Some(ratio) = self.ratio.filter(|ratio| !(*ratio > 0.0 && *ratio <= 1.0)) {
            return Err(Error::Recipe(format!("ratio: expected a share above 0, at most 1, got {ratio}")));
        }
        if self.rounds > MAX_ROUNDS {
            return Err(Error::Recipe(format!("rounds: expected at most {MAX_ROUNDS}, got {}", self.rounds)));
        }
        if self.max_memory.is_some() && !self.reconstruction.heal.is_empty() {
            let message = "max_memory: reconstructions hold the calibration text's activations, which no limit bounds";
            return Err(Error::Recipe(format!(
                "{message}; leave the limit out (fewer samples take less) or the reconstructions"
            )));
        }
        if self.plan.is_none() && self.scores.is_none() {
            return Err(Error::Recipe("scores: needed to rank by; `minitron score` writes them".into()));
        }
        Ok(())
    }
}

/// Prunes a model into a folder and reconstructs it; with `dry_run`, writes nothing.
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
    let _claim = if dry_run { None } else { Some(OutputLock::of(out)?) };
    options.reconstruction.build(context)?;
    let windows = options.reconstruction.windows(context, &folder, options.rounds > 1, (!dry_run).then_some(out))?;
    let own = identity_of(&folder)?;
    let Decision { plan, rankings, explained } = decide(context, options, (&folder, &own), windows.as_ref())?;
    // Before the reconstructions, which take long. The student knows which layers stay; what it holds of the plan goes at once.
    {
        let student = Student::new(&folder.checkpoint.tensors, &folder.spec, &plan)?;
        clients::warn(context, &student.spec, &Sizes::new());
    }
    ModuleChanges::new(&folder.checkpoint.dir, &folder.spec, &plan, None)?;
    let writing = within(options.max_memory, &folder.checkpoint.tensors)?;
    let editor = options.reconstruction.editor(context, &folder, (plan, rankings.as_ref()), windows.as_ref())?;
    let plan = editor.plan();
    let modules = ModuleChanges::new(&folder.checkpoint.dir, &folder.spec, plan, editor.hidden_basis())?;
    let mut report = report_of(&folder.spec, &editor);
    report["near_ties"] = json!(near_ties(&explained));
    if dry_run {
        report["kept"] = json!(plan.kept);
        report["explained"] = json!(explained);
        return Ok(report);
    }
    let output = OutputDir::create(out, context.force)?;
    let written = Written {
        config: editor.config(),
        spec: editor.spec(),
        tensors: &editor.student()?,
        from: &folder.checkpoint.dir,
        modules: &modules,
        card: &options.card(context, &folder)?,
        before: Some(&Before::of(&folder.spec)),
        measured: &[],
        options: writing,
    };
    written.write(output.path())?;
    write_plan(&output.path().join("plan.json"), (plan, &own), &explained, &report)?;
    output.commit()?;
    report["out"] = json!(out);
    Ok(report)
}

/// The kind of dim that options call so: the depth is `layers` to those who type it.
pub(super) fn kind_of(word: &str) -> &str {
    if word == "layers" { DEPTH } else { word }
}

/// Sizes before and after, and what follows from them.
pub(super) fn report_of(source: &ModelSpec, editor: &StudentEditor) -> Value {
    let sizes = editor.plan().sizes();
    let mut report = json!({
        "architecture": source.architecture,
        "n_params": editor.spec().n_params(),
        "n_params_source": source.n_params(),
        "n_non_embedding": editor.spec().n_non_embedding_at(&Sizes::new()),
        "n_non_embedding_source": source.n_non_embedding_at(&Sizes::new()),
        "sizes": sizes,
        "sizes_source": source.sizes(),
    });
    clients::note(editor.spec(), &Sizes::new(), &mut report);
    note(editor, &mut report);
    report
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

fn near_ties(explained: &BTreeMap<String, Explained>) -> Vec<&str> {
    explained.iter().filter(|(_, dim)| dim.near_tie).map(|(name, _)| name.as_str()).collect()
}

pub(super) fn write_plan(
    path: &Path,
    (plan, source): (&Plan, &Identity),
    explained: &BTreeMap<String, Explained>,
    report: &Value,
) -> Result<()> {
    let mut value = json!({ "kept": plan.kept });
    for (key, whose) in source.to_metadata() {
        value[key] = whose.into();
    }
    for key in ["sizes", "sizes_source", "n_params", "n_params_source", "tensor_parallel", "clients"] {
        value[key] = report[key].clone();
    }
    if !explained.is_empty() {
        value["explained"] = json!(explained);
    }
    for key in ["healed", "hidden_basis"] {
        if let Some(found) = report.get(key) {
            value[key] = found.clone();
        }
    }
    write_atomic(path, format!("{value:#}\n"))
}
