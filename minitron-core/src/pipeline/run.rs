//! `run`: a recipe's stages in order, those left out whose inputs did not change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use tracing::info_span;

use super::context::Context;
use super::recipe::{Recipe, Stage, StageOptions};
use super::run_dir::{RunDir, StageRecord};
use super::verify::artefacts;
use super::{Setup, TaskSource, distill, eval, generate, prune, score, search, train};
use crate::checkpoint::{OutputDir, write_whole};
use crate::data::{DataSpec, Pack, Reading};
use crate::digest;
use crate::error::{IoContext, Result};
use crate::memory::{forget_peak, peak_bytes};
use crate::registry::PluginSpec;
use crate::train::{clear_state, has_state};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs a recipe into a folder; an interrupted training goes on at its last checkpoint.
pub fn run(context: &Context, recipe: &Recipe, out: &Path) -> Result<Value> {
    if context.force {
        refuse_own_inputs(&serde_json::to_value(&recipe.stages).unwrap_or_default(), &recipe.path, out)?;
    }
    let mut run_dir = RunDir::open(out, context.force)?;
    run_dir.describe(context, &recipe.path);
    let names: Vec<&str> = recipe.stages.iter().map(|stage| stage.name.as_str()).collect();
    run_dir.record.stages.retain(|stage| names.contains(&stage.name.as_str()));
    // Each stage owns its folder.
    let context = Context { force: true, ..*context };
    let (mut known, mut is_interrupted) = (BTreeMap::new(), false);
    for (idx, stage) in recipe.stages.iter().enumerate() {
        let earlier = names.get(..idx).unwrap_or_default();
        let place = Place { dir: parent(&recipe.path), earlier };
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
pub(super) fn refuse_own_inputs(named_in: &Value, file: &Path, out: &Path) -> Result<()> {
    fn words(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::String(word) => found.push(word.split('#').next().unwrap_or_default().to_owned()),
            Value::Array(list) => list.iter().for_each(|value| words(value, found)),
            Value::Object(object) => object.values().for_each(|value| words(value, found)),
            _ => {}
        }
    }
    let mut named = Vec::new();
    words(named_in, &mut named);
    let dir = parent(file);
    // `NAME=FILE`, and the file of a plugin: `text:path=FILE`.
    let task = |word: &String| word.rsplit_once('=').map(|(_, path)| dir.join(path));
    let paths: Vec<PathBuf> = named.iter().flat_map(|word| [Some(dir.join(word)), task(word)]).flatten().collect();
    let inputs = paths
        .iter()
        .filter(|path| path.is_file() || ["config.json", "cache.json"].iter().any(|name| path.join(name).is_file()));
    OutputDir::refuse_inputs(out, inputs.map(PathBuf::as_path).chain([file]))
}

/// A stage without the options that change when its result is there, but not the result.
fn what_decides(stage: &Stage) -> Value {
    const CHANGE_NOTHING: [&str; 6] =
        ["checkpoint_every", "checkpoint_minutes", "keep", "stop_after", "max_skipped", "stream_teacher"];
    let mut value = serde_json::to_value(stage).unwrap_or_default();
    if let Some(options) = value.as_object_mut() {
        options.retain(|key, _| !CHANGE_NOTHING.contains(&key.as_str()));
        if matches!(stage.options, StageOptions::Search(_)) {
            // How many candidates learn side by side.
            options.shift_remove("max_memory");
        }
        if let Some(cache) = options.get_mut("teacher_cache") {
            *cache = Value::from(!cache.is_null());
        }
    }
    value
}

/// Where a stage stands.
pub(super) struct Place<'a> {
    /// Where paths begin.
    pub dir: PathBuf,
    /// Stages that may be named.
    pub earlier: &'a [&'a str],
}

/// Runs a stage, or skips it where its result is there and its inputs are what they were; true where it stopped on the way
/// and what follows has to wait. `known` holds digests of files.
pub(super) fn run_stage(
    context: &Context,
    stage: &Stage,
    place: &Place,
    known: &mut BTreeMap<PathBuf, String>,
    run_dir: &mut RunDir,
) -> Result<bool> {
    let _span = info_span!("stage", name = %stage.name, job = stage.options.job()).entered();
    let mut inputs =
        Inputs { context, recipe_dir: place.dir.clone(), run_dir, earlier: place.earlier, known, read: Vec::new() };
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
    let earlier = run_dir.find(&record.name).filter(|earlier| earlier.inputs == record.inputs);
    if earlier.is_some_and(|earlier| earlier.result.is_some()) && dir.join(artefact(options)).is_file() {
        context.progress.warn(&format!("{}: unchanged, skipped", record.name));
        return Ok(false);
    }
    // The state of a training that was interrupted with the very same inputs.
    let is_same = earlier.is_some();
    // Of a run that was interrupted.
    let before = earlier.filter(|earlier| earlier.result.is_none()).map_or(0.0, |earlier| earlier.seconds);
    let resume = is_same && has_state(&dir);
    if !is_same {
        // One of other inputs goes before these are on record, or it would be taken for theirs.
        clear_state(&dir)?;
    }
    record.seconds = before;
    run_dir.put(record.clone())?;
    forget_peak();
    context.progress.warn(&format!("{}: {}", record.name, record.job));
    let begin = Instant::now();
    let result = match options {
        StageOptions::Score(options) => score(context, options, &dir.join("scores.safetensors")),
        StageOptions::Prune(options) => prune(context, options, &dir, false),
        StageOptions::Train(options) => train(context, options, &dir, resume),
        StageOptions::Distill(options) => distill(context, options, &dir, resume),
        StageOptions::Eval(options) => eval(context, options).and_then(|result| save_result(&dir, result)),
        StageOptions::Search(options) => search(context, options, &dir, is_same, false),
        StageOptions::Generate(options) => generate(context, options).and_then(|result| save_result(&dir, result)),
    }?;
    record.seconds = before + begin.elapsed().as_secs_f64();
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

/// The file that shows a stage is done.
fn artefact(options: &StageOptions) -> &'static str {
    match options {
        StageOptions::Score(_) => "scores.safetensors",
        StageOptions::Prune(_) | StageOptions::Train(_) | StageOptions::Distill(_) => "config.json",
        StageOptions::Search(_) => "winner/config.json",
        StageOptions::Eval(_) | StageOptions::Generate(_) => "result.json",
    }
}

fn save_result(dir: &Path, result: Value) -> Result<Value> {
    std::fs::create_dir_all(dir).at_path(dir)?;
    let path = dir.join("result.json");
    write_whole(&path, format!("{result:#}\n"))?;
    Ok(result)
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Puts real places for what a stage names, and remembers a digest of each.
struct Inputs<'a, 'c> {
    context: &'a Context<'c>,
    recipe_dir: PathBuf,
    run_dir: &'a RunDir,
    /// Stages that may be named.
    earlier: &'a [&'a str],
    /// Files hashed for other stages.
    known: &'a mut BTreeMap<PathBuf, String>,
    /// What the result follows from besides the options, in the order of the options: files, and stages by their inputs.
    read: Vec<(Option<PathBuf>, String)>,
}

impl Inputs<'_, '_> {
    fn resolve(&mut self, options: &StageOptions) -> Result<StageOptions> {
        let mut options = options.clone();
        match &mut options {
            StageOptions::Score(o) => {
                self.model(&mut o.model)?;
                self.specs(&mut o.metrics)?;
                self.data(&mut o.data, &o.field, &o.token_type)?;
            }
            StageOptions::Prune(o) => {
                self.model(&mut o.model)?;
                if let Some(scores) = &mut o.scores {
                    self.scores(scores)?;
                }
                if let Some(plan) = &mut o.plan {
                    *plan = self.recipe_dir.join(&*plan);
                    self.file(plan)?;
                }
                self.specs(&mut o.metrics)?;
                let treatment = &mut o.treatment;
                self.specs(&mut treatment.heal)?;
                self.data(&mut treatment.data, &treatment.field, &treatment.token_type)?;
            }
            StageOptions::Train(o) => {
                if let Some(config) = &mut o.config {
                    *config = self.config(config)?;
                }
                if let Some(model) = &mut o.model {
                    self.model(model)?;
                }
                self.texts(&mut o.setup)?;
            }
            StageOptions::Distill(o) => {
                o.asked.teacher_cache = o.asked.teacher_cache.take().map(|dir| self.recipe_dir.join(dir));
                self.model(&mut o.teacher)?;
                self.model(&mut o.student)?;
                self.texts(&mut o.setup)?;
            }
            StageOptions::Eval(o) => {
                self.model(&mut o.model)?;
                if let Some(teacher) = &mut o.teacher {
                    self.model(teacher)?;
                }
                self.specs(&mut o.evaluators)?;
                for task in &mut o.tasks {
                    self.task(&mut task.what)?;
                }
                self.data(&mut o.data, &o.field, &o.token_type)?;
            }
            StageOptions::Search(o) => {
                self.model(&mut o.model)?;
                self.scores(&mut o.scores)?;
                o.asked.teacher_cache = o.asked.teacher_cache.take().map(|dir| self.recipe_dir.join(dir));
                self.specs(&mut o.heal)?;
                self.texts(&mut o.setup)?;
            }
            StageOptions::Generate(o) => self.model(&mut o.model)?,
        }
        Ok(options)
    }

    /// An earlier stage's folder or one inside it (`search/winner`), remembered by what that stage was made from; else a path
    /// from the recipe's folder.
    fn place(&mut self, name: &str) -> (PathBuf, bool) {
        let stage = name.split('/').next().unwrap_or_default();
        let is_path = stage != name && self.recipe_dir.join(name).exists();
        match self.run_dir.find(stage).filter(|_| self.earlier.contains(&stage) && !is_path) {
            Some(found) => {
                self.read.push((None, found.inputs.clone()));
                (self.run_dir.stage(name), true)
            }
            None => (self.recipe_dir.join(name), false),
        }
    }

    fn scores(&mut self, scores: &mut String) -> Result<()> {
        let (path, is_stage) = self.place(scores);
        if !is_stage {
            self.file(&super::score::scores_path(&path.to_string_lossy())?)?;
        }
        *scores = path.display().to_string();
        Ok(())
    }

    fn model(&mut self, model: &mut String) -> Result<()> {
        let (place, is_stage) = self.place(model);
        if is_stage || place.is_dir() {
            *model = place.display().to_string();
        }
        if is_stage {
            return Ok(());
        }
        self.folder(&(self.context.resolve)(model)?)
    }

    /// Weights, config and tokenizer.
    fn folder(&mut self, dir: &Path) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths.iter().filter(|path| is_weight_or_config(path)).try_for_each(|path| self.file(path))
    }

    fn config(&mut self, config: &Path) -> Result<PathBuf> {
        let (place, is_stage) = self.place(&config.to_string_lossy());
        let file = if place.is_dir() { place.join("config.json") } else { place };
        self.file(&file)?;
        if !is_stage {
            // The tokenizer beside it decides as much.
            self.folder(&parent(&file))?;
        }
        Ok(file)
    }

    /// What a training reads and what it is evaluated on.
    fn texts(&mut self, setup: &mut Setup) -> Result<()> {
        self.specs(&mut setup.losses)?;
        self.data(&mut setup.data, &setup.field, &setup.token_type)?;
        self.data(&mut setup.eval_data, &setup.field, &setup.token_type)
    }

    fn data(&mut self, data: &mut [DataSpec], field: &Option<String>, token_type: &Option<String>) -> Result<()> {
        let reading = Reading {
            field: field.clone(),
            token_type: token_type.clone(),
            seq_len: 2,
            max_windows: None,
            seed: self.context.seed,
            pack: Pack::Stream,
        };
        for spec in data.iter_mut() {
            *spec = spec.relative_to(&self.recipe_dir, self.context.registry);
            for file in spec.corpus(self.context.registry, &reading)?.files() {
                self.digest(&file, digest::of_data_file)?;
            }
        }
        Ok(())
    }

    /// Files that plugins read.
    fn specs(&mut self, specs: &mut [PluginSpec]) -> Result<()> {
        for spec in specs {
            *spec = spec.clone().relative_to(&self.recipe_dir);
            for (_, path) in spec.paths() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn task(&mut self, task: &mut TaskSource) -> Result<()> {
        match task {
            TaskSource::File(path) => {
                *path = self.recipe_dir.join(&*path);
                self.file(path)
            }
            TaskSource::Evaluator(spec) => self.specs(std::slice::from_mut(spec)),
        }
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        self.digest(path, digest::of_file)
    }

    fn digest(&mut self, path: &Path, digest_of: impl Fn(&Path) -> Result<String>) -> Result<()> {
        let digest = match self.known.get(path) {
            Some(digest) => digest.clone(),
            None => digest_of(path)?,
        };
        self.known.insert(path.to_path_buf(), digest.clone());
        self.read.push((Some(path.to_path_buf()), digest));
        Ok(())
    }
}

fn is_weight_or_config(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.is_file() && (name.ends_with(".safetensors") || name.ends_with(".json"))
}
