//! `run`: a recipe's stages in order, those left out whose inputs did not change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Map, Value, json};
use tracing::info_span;

use super::inputs::{Inputs, parent};
use super::run_dir::{RunDir, StageRecord};
use super::verify::{artefacts, is_intact};
use super::{Recipe, Stage, StageOptions, options_schema};
use crate::jobs::blocks::{BLOCKS_FILE, blocks};
use crate::jobs::context::Context;
use crate::jobs::marks::decide_nothing;
use crate::jobs::{distill, eval, generate, prune, score, train};
use crate::memory::{forget_peak, peak_bytes};
use crate::search::search;
use crate::train::{clear_state, has_state};
use minitron_core::digest;
use minitron_core::error::{IoContext, Result};
use minitron_core::output::{OutputDir, write_atomic};
use minitron_core::progress::Recorder;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs a recipe into a folder; an interrupted training goes on at its last checkpoint.
pub fn run(context: &Context, recipe: &Recipe, out: &Path) -> Result<Value> {
    if context.force {
        let named_in = serde_json::to_value(&recipe.stages).unwrap_or_default();
        refuse_own_inputs(&named_in, &recipe.path, out)?;
    }
    let mut run_dir = RunDir::open(out, context.force)?;
    run_dir.describe(context, &recipe.path);
    let stages = recipe.stages.iter();
    let names: Vec<&str> = stages.map(|stage| stage.name.as_str()).collect();
    let recorded = &mut run_dir.record.stages;
    recorded.retain(|stage| names.contains(&stage.name.as_str()));
    // Each stage owns its folder.
    let context = Context {
        force: true,
        ..*context
    };
    let (mut known, mut is_interrupted) = (BTreeMap::new(), false);
    for (idx, stage) in recipe.stages.iter().enumerate() {
        let earlier = names.get(..idx).unwrap_or_default();
        let place = StagePlace {
            dir: parent(&recipe.path),
            earlier,
        };
        let done = run_stage(&context, stage, &place, &mut known, &mut run_dir);
        let is_halted = done.map_err(|e| e.at(format!("stages[{idx}] ({})", stage.name)))?;
        if is_halted || context.interrupt.is_asked() {
            is_interrupted = true;
            break;
        }
    }
    let mut report = run_dir.to_value();
    if let (Some(report), true) = (report.as_object_mut(), is_interrupted) {
        report.insert("interrupted".into(), true.into());
    }
    Ok(report)
}

/// Starting over removes the folder: nothing that the recipe names may lie in it.
pub(crate) fn refuse_own_inputs(named_in: &Value, file: &Path, out: &Path) -> Result<()> {
    let mut named = Vec::new();
    words(named_in, &mut named);
    let dir = parent(file);
    let mut inputs = Vec::new();
    for word in named {
        inputs.push(dir.join(word));
        // `NAME=FILE`, and the file of a plugin: `text:path=FILE`.
        if let Some((_, path)) = word.rsplit_once('=') {
            inputs.push(dir.join(path));
        }
    }
    inputs.retain(|path| {
        path.is_file() || path.join("config.json").is_file() || path.join("cache.json").is_file()
    });
    OutputDir::refuse_inputs(out, inputs.iter().map(PathBuf::as_path).chain([file]))
}

/// All words in a value, each up to its `#`.
fn words<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::String(word) => found.push(word.split('#').next().unwrap_or_default()),
        Value::Array(list) => list.iter().for_each(|value| words(value, found)),
        Value::Object(object) => object.values().for_each(|value| words(value, found)),
        _ => {}
    }
}

/// A stage without the options that change when its result is there, but not the result.
fn what_decides(stage: &Stage) -> Value {
    let nothing = decide_nothing(&options_schema(stage.options.job()));
    let mut value = serde_json::to_value(stage).unwrap_or_default();
    if let Some(options) = value.as_object_mut() {
        options.retain(|key, _| !nothing.contains(key));
        // Recipes without it came before it.
        let sizes = options.get("size").and_then(Value::as_object);
        if sizes.is_some_and(Map::is_empty) {
            options.shift_remove("size");
        }
        // The first windows were all there were; `score` takes them still.
        for sampling in ["sampling", "reconstruct_sampling"] {
            if options.get(sampling).is_some_and(|way| way == "first") {
                options.shift_remove(sampling);
            }
        }
        if let Some(cache) = options.get_mut("teacher_cache") {
            *cache = Value::from(!cache.is_null());
        }
    }
    value
}

/// Where a stage stands.
pub(crate) struct StagePlace<'a> {
    /// Where paths begin.
    pub dir: PathBuf,
    /// Stages that may be named.
    pub earlier: &'a [&'a str],
}

/// Runs a stage, or skips it where its result is there and its inputs are what they were; true
/// where it stopped on the way and what follows has to wait. `known` holds digests of files.
pub(crate) fn run_stage(
    context: &Context,
    stage: &Stage,
    place: &StagePlace,
    known: &mut BTreeMap<PathBuf, String>,
    run_dir: &mut RunDir,
) -> Result<bool> {
    let _span = info_span!("stage", name = %stage.name, job = stage.options.job()).entered();
    let mut inputs = Inputs {
        context,
        recipe_dir: place.dir.clone(),
        run_dir,
        earlier: place.earlier,
        known,
        read: Vec::new(),
    };
    let resolved = info_span!("inputs").in_scope(|| inputs.resolve(&stage.options))?;
    let read = std::mem::take(&mut inputs.read);
    let digests: Vec<&String> = read.iter().map(|(_, digest)| digest).collect();
    let what = json!([
        VERSION,
        what_decides(stage),
        digests,
        context.seed,
        format!("{:?}", context.kind),
        context.registry.libraries()
    ]);
    let record = StageRecord {
        name: stage.name.clone(),
        job: stage.options.job().to_owned(),
        inputs: digest::of_text(&what.to_string()),
        result: None,
        seconds: 0.0,
        peak_bytes: None,
        warnings: Vec::new(),
        options: serde_json::to_value(&stage.options).unwrap_or_default(),
        input_files: read
            .into_iter()
            .filter_map(|(path, digest)| Some((path?.display().to_string(), digest)))
            .collect(),
        artefacts: BTreeMap::new(),
    };
    run_resolved(context, &resolved, record, run_dir)
}

fn run_resolved(
    context: &Context,
    options: &StageOptions,
    mut record: StageRecord,
    run_dir: &mut RunDir,
) -> Result<bool> {
    let dir = run_dir.stage(&record.name);
    let earlier = run_dir.find(&record.name);
    let earlier = earlier.filter(|earlier| earlier.inputs == record.inputs);
    if earlier.is_some_and(|earlier| is_whole(earlier, options, &dir)) {
        let message = format!("{}: unchanged, skipped", record.name);
        context.progress.note(&message);
        return Ok(false);
    }
    // The state of a training that was interrupted with the very same inputs.
    let is_same = earlier.is_some();
    // Of a run that was interrupted.
    if let Some(interrupted) = earlier.filter(|earlier| earlier.result.is_none()) {
        record.seconds = interrupted.seconds;
        record.warnings = interrupted.warnings.clone();
    }
    if !is_same {
        // One of other inputs goes before these are on record, or it would be taken for theirs.
        clear_state(&dir)?;
    }
    run_dir.put(record.clone())?;
    forget_peak();
    let message = format!("{}: {}", record.name, record.job);
    context.progress.note(&message);
    let begin = Instant::now();
    let result = recorded(context, &mut record, run_dir, |context| {
        run_job(context, options, &dir, is_same)
    })?;
    record.seconds += begin.elapsed().as_secs_f64();
    record.peak_bytes = Some(peak_bytes());
    tracing::info!(peak_bytes = record.peak_bytes, "stage ended");
    if result["complete"] == false {
        run_dir.put(record)?;
        // Interrupted, or stopped where it was asked to: the next run finds its state.
        return Ok(true);
    }
    record.result = Some(result);
    record.artefacts = artefacts(&dir)?;
    run_dir.put(record)?;
    Ok(false)
}

/// Whether a stage is done, and what it left is there.
fn is_whole(stage: &StageRecord, options: &StageOptions, dir: &Path) -> bool {
    let is_done = stage.result.is_some() && dir.join(artefact(options)).is_file();
    is_done && is_intact(dir, &stage.artefacts)
}

/// Runs a job into a folder; `is_same` says that what is there came of the same inputs.
fn run_job(context: &Context, options: &StageOptions, dir: &Path, is_same: bool) -> Result<Value> {
    let resume = is_same && has_state(dir);
    match options {
        StageOptions::Score(options) => score(context, options, &dir.join("scores.safetensors")),
        StageOptions::Blocks(options) => blocks(context, options, &dir.join(BLOCKS_FILE)),
        StageOptions::Prune(options) => prune(context, options, dir, false),
        StageOptions::Train(options) => train(context, options, dir, resume),
        StageOptions::Distill(options) => distill(context, options, dir, resume),
        StageOptions::Eval(options) => save_result(dir, eval(context, options)?),
        StageOptions::Search(options) => search(context, options, dir, is_same, false),
        StageOptions::Generate(options) => save_result(dir, generate(context, options)?),
    }
}

/// Runs a job whose warnings go into its record, and on disk at once: the system may end the
/// process that was warned of.
fn recorded(
    context: &Context,
    record: &mut StageRecord,
    run_dir: &mut RunDir,
    job: impl FnOnce(&Context) -> Result<Value>,
) -> Result<Value> {
    let earlier = record.warnings.clone();
    let shared = Mutex::new((record, run_dir));
    let listener = |warnings: &[String]| {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, run_dir) = &mut *shared;
        record.warnings = warnings.to_vec();
        // Where nothing can be written, the end of the stage says so.
        let _ = run_dir.put(record.clone());
    };
    let recorder = Recorder::continued(context.progress, earlier, &listener);
    job(&Context {
        progress: &recorder,
        ..*context
    })
}

/// The file that shows a stage is done.
fn artefact(options: &StageOptions) -> &'static str {
    match options {
        StageOptions::Score(_) => "scores.safetensors",
        StageOptions::Blocks(_) => BLOCKS_FILE,
        StageOptions::Prune(_) | StageOptions::Train(_) | StageOptions::Distill(_) => "config.json",
        StageOptions::Search(_) => "winner/config.json",
        StageOptions::Eval(_) | StageOptions::Generate(_) => "result.json",
    }
}

fn save_result(dir: &Path, result: Value) -> Result<Value> {
    std::fs::create_dir_all(dir).at_path(dir)?;
    let path = dir.join("result.json");
    write_atomic(&path, format!("{result:#}\n"))?;
    Ok(result)
}
