//! `prune`: rank, plan, slice, reconstruct, write.

pub(crate) mod errors;
mod held_out;
pub(crate) mod memory;
pub(crate) mod options;
pub(crate) mod planning;
pub(crate) mod reconstruction;

pub use options::PruneOptions;
pub use reconstruction::ReconstructOptions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::errors::with_errors;
use self::held_out::{HeldOutText, measured};
use self::memory::{Forecast, WaitingRoom, within};
use self::planning::{Decision, decide};
use self::reconstruction::note;
use crate::jobs::blocks::blocks_path;
use crate::jobs::card::{Before, Card, facts, name_of};
use crate::jobs::clients;
use crate::jobs::context::Context;
use crate::jobs::identity::identity_of;
use crate::jobs::score::scores_path;
use crate::jobs::written::Written;
use minitron_core::calibrate::World;
use minitron_core::checkpoint::{Identity, WriteOptions};
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::output::{OutputDir, OutputLock, write_atomic};
use minitron_core::plan::{Explained, Plan};
use minitron_core::prune::{ModuleChanges, Student};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{ModelFolder, ModelSpec, Sizes};
use minitron_core::windows::Windows;

/// Beyond the steps that any axis has; each scores the text anew.
const MAX_ROUNDS: usize = 1000;

impl PruneOptions {
    fn card(
        &self,
        context: &Context,
        folder: &ModelFolder,
        editor: &StudentEditor,
    ) -> Result<Card> {
        const SIZED_BY: &str = "params active_params ratio non_embedding memory square \
                                layers_apart allocator axes by plan";
        let is_told = self.reconstruction.looks_at_text(context)? || self.rounds > 1;
        let looks_at_text = match is_told {
            true => "rounds metrics reconstruct data samples sampling seq_len seed",
            false => "reconstruct seed",
        };
        let mut told = serde_json::to_value(self).unwrap_or_default();
        told["reconstruct"] = json!(editor.reconstructed());
        told["seed"] = json!(context.seed);
        told["rounds"] = json!((self.rounds > 1).then_some(self.rounds));
        let facts = facts(&told, &format!("{SIZED_BY} {looks_at_text}"));
        let dir = &folder.checkpoint.dir;
        let name = name_of(&self.model, dir);
        Card::new("prune", Some(&name), dir, &folder.spec, facts)
    }

    /// How to write, and where streams wait if memory is bounded and some text is looked at.
    ///
    /// # Errors
    /// `Recipe` where the limit is too small; `Io`.
    fn bounded(
        &self,
        context: &Context,
        models: (&ModelFolder, &ModelSpec),
        texts: Texts,
        out: Option<&Path>,
    ) -> Result<(WriteOptions, Option<WaitingRoom>)> {
        let writing = within(self.max_memory, &models.0.checkpoint.tensors)?;
        let looks_at_text = self.reconstruction.looks_at_text(context)?;
        let calibration = texts.calibration.filter(|_| looks_at_text);
        let held_out = texts.held_out.map(|text| &text.windows);
        let Some(limit) = self.max_memory else {
            return Ok((writing, None));
        };
        if calibration.is_none() && held_out.is_none() {
            return Ok((writing, None));
        }
        let batch_size = self.reconstruction.batch_size;
        let of_batch = |windows: &Windows| (batch_size.min(windows.len()) * windows.width()) as u64;
        let of_texts = (calibration.map(of_batch), held_out.map(of_batch));
        Forecast::new(context, models, of_texts).check(context, limit)?;
        Ok((writing, Some(WaitingRoom::open(context, out)?)))
    }

    /// Exactly one way to say how large the student shall be.
    fn check(&self) -> Result<()> {
        let measures = [
            self.latency_ms.is_some(),
            self.params.is_some(),
            self.active_params.is_some(),
            self.ratio.is_some(),
            self.memory.is_some(),
        ];
        let sizes_alone = !self.sizes()?.is_empty() && !measures.contains(&true);
        let ways = [self.plan.is_some(), self.allocator.is_some(), sizes_alone];
        if ways.iter().chain(&measures).filter(|&&way| way).count() != 1 {
            return Err(Error::Recipe(
                "say once how large the student shall be: sizes (hidden, mlp, heads, kv_heads, \
                 layers, size), params, active_params, ratio or memory (sizes beside them are \
                 held), allocator, or plan"
                    .into(),
            ));
        }
        // Checked here as well as by the allocator: JSON, in which it gets its parameters, has no
        // NaN.
        if let Some(ratio) = self.ratio.filter(|ratio| !(*ratio > 0.0 && *ratio <= 1.0)) {
            return Err(Error::Recipe(format!(
                "ratio: expected a share above 0, at most 1, got {ratio}"
            )));
        }
        if self.rounds > MAX_ROUNDS {
            let n = self.rounds;
            let message = format!("rounds: expected at most {MAX_ROUNDS}, got {n}");
            return Err(Error::Recipe(message));
        }
        let is_planned = self.plan.is_some() || self.rounds > 1;
        if self.blocks.is_some() && is_planned || self.times.is_some() && self.blocks.is_none() {
            return Err(Error::Recipe(
                "blocks, times: blocks choose sizes once, by scores, and times are theirs; leave \
                 them out beside plan and rounds"
                    .into(),
            ));
        }
        if self.plan.is_none() && self.scores.is_none() {
            return Err(Error::Recipe(
                "scores: needed to rank by; `minitron score` writes them".into(),
            ));
        }
        Ok(())
    }
}

/// Prunes a model into a folder and reconstructs it; with `dry_run`, writes nothing.
pub fn prune(
    context: &Context,
    options: &PruneOptions,
    out: &Path,
    dry_run: bool,
) -> Result<Value> {
    options.check()?;
    let (ranks, place) = (context.ranks, (!dry_run).then_some(out));
    ranks.first(|| place.map_or(Ok(()), |out| OutputDir::refuse_existing(out, context.force)))?;
    let folder = context.open_as(&options.model, options.layers_apart)?;
    let mut _claim = None;
    ranks.first(|| {
        _claim = place.map(|out| claim(options, &folder, out)).transpose()?;
        Ok(())
    })?;
    let reconstruction = &options.reconstruction;
    reconstruction.build(context)?;
    let windows = reconstruction.windows(context, &folder, options.rounds > 1, place)?;
    let held_out = options.held_out(context, &folder, place)?;
    let texts = Texts {
        calibration: windows.as_ref(),
        held_out: held_out.as_ref(),
    };
    let own = agreed_identity(context, options, &folder, texts)?;
    let Decision {
        plan,
        rankings,
        explained,
    } = decide(context, options, (&folder, &own), windows.as_ref())?;
    // Before the reconstructions, which take long.
    let models = (&folder, &look_ahead(context, &folder, &plan)?);
    let (writing, room) = options.bounded(context, models, texts, place)?;
    let others = (&ranks as &dyn World, room.as_ref().map(WaitingRoom::path));
    let plain = held_out.as_ref();
    let plain = plain.map(|text| text.of_plain_cut(context, options, (&folder, &plan), others));
    let plain = plain.transpose()?;
    let ranked = (plan, rankings.as_ref());
    let editor = reconstruction.editor(context, &folder, ranked, windows.as_ref(), others)?;
    let mut report = report_of(&folder.spec, &editor);
    if let (Some(text), Some(plain)) = (&held_out, plain) {
        report["held_out"] = text.compared(context, &ranks, (plain, &editor))?;
    }
    let explained = note_cuts(&mut report, explained, &editor);
    if dry_run {
        report["kept"] = json!(editor.plan().kept);
        report["explained"] = json!(explained);
        return Ok(report);
    }
    let card = options.card(context, &folder, &editor)?;
    ranks.first(|| {
        let output = OutputDir::create(out, context.force)?;
        write_student(output.path(), (&folder, &editor), (&card, &report), writing)?;
        let path = output.path().join("plan.json");
        write_plan(&path, (editor.plan(), &own), &explained, &report)?;
        output.commit()
    })?;
    report["out"] = json!(out);
    Ok(report)
}

/// What a pruning looks at.
#[derive(Clone, Copy)]
struct Texts<'a> {
    calibration: Option<&'a Windows>,
    held_out: Option<&'a HeldOutText>,
}

/// A student's folder but for its plan.
fn write_student(
    dir: &Path,
    (folder, editor): (&ModelFolder, &StudentEditor),
    (card, report): (&Card, &Value),
    options: WriteOptions,
) -> Result<()> {
    let (from, spec) = (&folder.checkpoint.dir, &folder.spec);
    let modules = ModuleChanges::new(from, spec, editor.plan(), editor.hidden_basis())?;
    let written = Written {
        config: editor.config(),
        spec: editor.spec(),
        tensors: &editor.student()?,
        from,
        modules: &modules,
        card,
        before: Some(&Before::of(spec)),
        measured: &measured(report),
        options,
    };
    written.write(dir)
}

/// The model's. Refuses ranks that were told something else: all that decides the student, wherever
/// files lie.
fn agreed_identity(
    context: &Context,
    options: &PruneOptions,
    folder: &ModelFolder,
    texts: Texts,
) -> Result<Identity> {
    let own = identity_of(folder)?;
    if !context.ranks.has_others() {
        return Ok(own);
    }
    let mut settings = serde_json::to_value(options).unwrap_or_default();
    let places = [
        "model",
        "scores",
        "plan",
        "data",
        "eval_data",
        "blocks",
        "times",
    ];
    for place in places {
        settings[place] = Value::Null;
    }
    let scores = options.scores.as_deref().map(scores_path).transpose()?;
    let tables = [&options.blocks, &options.times].into_iter().flatten();
    let tables: Vec<PathBuf> = tables
        .map(|path| blocks_path(path))
        .collect::<Result<_>>()?;
    let files = scores.as_deref().into_iter().chain(options.plan.as_deref());
    let files = files.chain(tables.iter().map(PathBuf::as_path));
    let digests: Vec<String> = files.map(digest::of_file).collect::<Result<_>>()?;
    let identity = json!({
        "model": own.to_metadata(),
        "data": texts.calibration.map(Windows::digest),
        "eval_data": texts.held_out.map(|text| text.windows.digest()),
        "scores and plan": digests,
        "settings": settings,
        "dtype": format!("{:?}", context.kind),
        "seed": context.seed,
    });
    context.ranks.same("pruning", &identity)?;
    Ok(own)
}

/// Takes the output for this process, where it holds nothing that is read.
fn claim(options: &PruneOptions, folder: &ModelFolder, out: &Path) -> Result<OutputLock> {
    let inputs = [
        Some(folder.checkpoint.dir.as_path()),
        options.plan.as_deref(),
        options.scores.as_deref().map(Path::new),
        options.blocks.as_deref().map(Path::new),
        options.times.as_deref().map(Path::new),
    ];
    OutputDir::refuse_inputs(out, inputs.into_iter().flatten())?;
    OutputLock::of(out)
}

/// Refuses a plan that cannot be written, and says which programs refuse its sizes. The student
/// knows which layers stay; what it holds of the plan goes at once.
fn look_ahead(context: &Context, folder: &ModelFolder, plan: &Plan) -> Result<ModelSpec> {
    let student = Student::new(&folder.checkpoint.tensors, &folder.spec, plan)?;
    clients::warn(context, &student.spec, &Sizes::new());
    ModuleChanges::new(&folder.checkpoint.dir, &folder.spec, plan, None)?;
    Ok(student.spec)
}

/// Sizes before and after, and what follows from them.
pub(crate) fn report_of(source: &ModelSpec, editor: &StudentEditor) -> Value {
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
    if source.has_idle() {
        report["n_active"] = json!(editor.spec().n_active_at(&Sizes::new()));
        report["n_active_source"] = json!(source.n_active_at(&Sizes::new()));
    }
    clients::note(editor.spec(), &Sizes::new(), &mut report);
    note(editor, &mut report);
    report
}

fn near_ties(explained: &BTreeMap<String, Explained>) -> Vec<&str> {
    let near = explained.iter().filter(|(_, dim)| dim.near_tie);
    near.map(|(name, _)| name.as_str()).collect()
}

/// Says which cuts are close, and gives them with what each costs.
fn note_cuts(
    report: &mut Value,
    explained: BTreeMap<String, Explained>,
    editor: &StudentEditor,
) -> BTreeMap<String, Explained> {
    report["near_ties"] = json!(near_ties(&explained));
    with_errors(explained, editor)
}

pub(crate) fn write_plan(
    path: &Path,
    (plan, source): (&Plan, &Identity),
    explained: &BTreeMap<String, Explained>,
    report: &Value,
) -> Result<()> {
    let mut value = json!({ "kept": plan.kept });
    for (key, whose) in source.to_metadata() {
        value[key] = whose.into();
    }
    for key in [
        "sizes",
        "sizes_source",
        "n_params",
        "n_params_source",
        "tensor_parallel",
        "clients",
    ] {
        value[key] = report[key].clone();
    }
    if !explained.is_empty() {
        value["explained"] = json!(explained);
    }
    for key in ["healed", "hidden_basis", "taken", "fits", "held_out"] {
        if let Some(found) = report.get(key) {
            value[key] = found.clone();
        }
    }
    write_atomic(path, format!("{value:#}\n"))
}
