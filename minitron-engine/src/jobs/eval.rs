//! `eval`: held-out loss, divergence from a teacher, tasks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::context::{Context, at_least_1, seq_len_or_default};
use super::identity::{identity_of, name_of};
use super::vocabulary::{Compared, Model, Vocabulary};
use crate::data::{DataSpec, TextOptions, Tokenizer, are_texts};
use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Result};
use minitron_core::files::read_text;
use minitron_core::plan::Plan;
use minitron_core::reconstruct::KeptUnits;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{HIDDEN, ModelFolder, ModelSpec, Sizes};
use minitron_core::windows::Windows;

/// Options of `eval`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct EvalOptions {
    /// Folder or hub id.
    pub model: String,
    /// Held-out text: FILE, or FILE#a..b for some of its documents.
    #[arg(long, num_args = 1..)]
    pub data: Vec<DataSpec>,
    /// Compare with this model.
    #[arg(long)]
    pub teacher: Option<String>,
    /// A task file, NAME=FILE, measured by what its fields ask for; or NAME=EVALUATOR:key=value.
    #[arg(long = "task")]
    pub tasks: Vec<NamedTask>,
    /// What to measure on the text, or on files of its own, `name:path=FILE` [default: what suits
    /// the model, on the text]
    #[arg(long = "evaluator")]
    #[schemars(extend("plugins" = ["evaluator"]))]
    pub evaluators: Vec<PluginSpec>,
    /// At most so many windows.
    #[arg(long)]
    pub samples: Option<usize>,
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
    /// Compare with a teacher that has another tokenizer, with a warning.
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub any_model: bool,
}

impl Default for EvalOptions {
    fn default() -> Self {
        EvalOptions {
            model: String::new(),
            data: Vec::new(),
            teacher: None,
            tasks: Vec::new(),
            evaluators: Vec::new(),
            samples: None,
            seq_len: None,
            batch_size: 8,
            text: TextOptions::default(),
            any_model: false,
        }
    }
}

/// `NAME=FILE`, or `NAME=TAG:key=value,…`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct NamedTask {
    /// Key in the result.
    pub name: String,
    /// What is measured.
    pub what: TaskSource,
}

/// What a task measures.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskSource {
    /// A file, by the evaluator that reads it.
    File(PathBuf),
    /// An evaluator of any kind.
    Evaluator(PluginSpec),
}

impl FromStr for NamedTask {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (name, what) = match text.split_once('=') {
            Some((name, what)) if !name.is_empty() && !what.is_empty() => (name, what),
            _ => {
                return Err(Error::Recipe(format!(
                    "expected NAME=FILE, or NAME=EVALUATOR:key=value, got `{text}`"
                )));
            }
        };
        let what = match is_evaluator(what) {
            true => TaskSource::Evaluator(what.parse()?),
            false => TaskSource::File(PathBuf::from(what)),
        };
        Ok(NamedTask {
            name: name.to_owned(),
            what,
        })
    }
}

/// A file may have a colon in its name, but hardly between what could be a tag and its parameters.
fn is_evaluator(what: &str) -> bool {
    let Some((tag, rest)) = what.split_once(':') else {
        return false;
    };
    let is_tag = !tag.is_empty() && tag.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_tag && (rest.is_empty() || rest.contains('='))
}

impl TryFrom<String> for NamedTask {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<NamedTask> for String {
    fn from(task: NamedTask) -> String {
        match task.what {
            TaskSource::File(path) => format!("{}={}", task.name, path.display()),
            // A colon is what tells an evaluator from a file.
            TaskSource::Evaluator(spec) if spec.params.is_empty() => {
                format!("{}={spec}:", task.name)
            }
            TaskSource::Evaluator(spec) => format!("{}={spec}", task.name),
        }
    }
}

/// Evaluates a model.
pub fn eval(context: &Context, options: &EvalOptions) -> Result<Value> {
    check(options)?;
    let folder = context.open_to_run(&options.model)?;
    let teacher = match &options.teacher {
        Some(teacher) => Some(context.open_to_run(teacher)?),
        None => None,
    };
    let teacher = teacher.as_ref();
    let tasks = tasks(context, options)?;
    let tokenizer = tokenizer(context, options, &folder, teacher)?.at(options.text.now()?);
    let windows = windows(context, options, &folder, &tokenizer)?;
    let measures = evaluators(context, options, &folder, windows.is_some())?;
    let model = context.load(&folder.checkpoint.tensors, &folder.spec, false)?;
    let (mut other, mut kept_hidden) = (None, None);
    if let Some(teacher) = teacher {
        // A model beside itself is loaded once.
        if teacher.checkpoint.dir != folder.checkpoint.dir {
            other = Some(context.load(&teacher.checkpoint.tensors, &teacher.spec, false)?);
        }
        let kept = kept_units(context, &folder.checkpoint.dir, teacher)?;
        kept_hidden = kept.and_then(|mut kept| kept.plan.kept.remove(HIDDEN));
    }
    let subject = Subject {
        model: &model,
        teacher: other.as_ref().or(teacher.map(|_| &model)),
        kept_hidden: kept_hidden.as_deref(),
        windows: windows.as_ref(),
        tokenizer: Some(&tokenizer),
        batch_size: options.batch_size,
        seed: context.seed,
        progress: context.progress,
    };
    measure(&folder.spec, &subject, measures, tasks)
}

/// What can be refused by looking at the options alone.
fn check(options: &EvalOptions) -> Result<()> {
    at_least_1("batch_size", options.batch_size)?;
    let names = options.tasks.iter().map(|task| task.name.as_str());
    if names.collect::<BTreeSet<_>>().len() < options.tasks.len() {
        return Err(Error::Recipe(
            "tasks: two have one name, under which one result stands; name each its own".into(),
        ));
    }
    if options.data.is_empty() && options.tasks.is_empty() && options.evaluators.is_empty() {
        return Err(Error::Recipe(
            "nothing to evaluate on; give data, a task or an evaluator".into(),
        ));
    }
    Ok(())
}

/// An evaluator, by its tag or a task's name.
type NamedEvaluator = (String, Box<dyn Evaluator>);

/// What is measured on the text, or as named.
fn evaluators(
    context: &Context,
    options: &EvalOptions,
    folder: &ModelFolder,
    has_windows: bool,
) -> Result<Vec<NamedEvaluator>> {
    let specs = match options.evaluators.as_slice() {
        [] if has_windows => {
            let has_teacher = options.teacher.is_some();
            context.defaults.evaluators(&folder.spec, has_teacher)
        }
        named => named.to_vec(),
    };
    let mut evaluators = Vec::with_capacity(specs.len());
    for spec in specs {
        let evaluator = context.registry.build::<dyn Evaluator>(&spec)?;
        evaluators.push((spec.tag, evaluator));
    }
    if evaluators.is_empty() && has_windows {
        let message = "an encoder without a head has no loss of its own; give a teacher to compare \
                       hidden states with";
        return Err(Error::Recipe(message.into()));
    }
    Ok(evaluators)
}

/// All measurements, as the report has them.
fn measure(
    spec: &ModelSpec,
    subject: &Subject,
    measures: Vec<NamedEvaluator>,
    tasks: Vec<NamedEvaluator>,
) -> Result<Value> {
    let mut report = Map::new();
    let n_non_embedding = spec.n_non_embedding_at(&Sizes::new());
    report.insert("architecture".into(), json!(spec.architecture));
    report.insert("n_params".into(), json!(spec.n_params()));
    report.insert("n_non_embedding".into(), json!(n_non_embedding));
    for (tag, evaluator) in measures {
        let _span = tracing::info_span!("evaluate", name = %tag).entered();
        insert(&mut report, evaluator.evaluate(subject)?);
    }
    let mut by_task = Map::new();
    for (name, evaluator) in tasks {
        let _span = tracing::info_span!("evaluate", %name).entered();
        let measured = evaluator.evaluate(subject);
        let mut results = Map::new();
        insert(
            &mut results,
            measured.map_err(|e| e.at(format!("task {name}")))?,
        );
        by_task.insert(name, Value::Object(results));
    }
    report.insert("tasks".into(), Value::Object(by_task));
    Ok(Value::Object(report))
}

/// Counts are whole numbers in the report.
fn insert(report: &mut Map<String, Value>, measured: Measurements) {
    for (key, value) in measured {
        let value = if key.starts_with("n_") {
            json!(value as u64)
        } else {
            json!(value)
        };
        report.insert(key, value);
    }
}

/// The model's tokenizer, compared with its teacher's.
fn tokenizer(
    context: &Context,
    options: &EvalOptions,
    folder: &ModelFolder,
    teacher: Option<&ModelFolder>,
) -> Result<Tokenizer> {
    let reading = options.text.reading(2, None, context.seed);
    let compared = if options.data.is_empty() {
        Compared::Nothing
    } else if are_texts(&options.data, &reading, context.registry)? {
        Compared::Text
    } else {
        Compared::Tokens
    };
    let how = (compared, options.any_model);
    let vocabulary = Vocabulary::open(context, Model::of(folder), teacher, how)?;
    Ok(vocabulary.tokenizer)
}

fn tasks(context: &Context, options: &EvalOptions) -> Result<Vec<NamedEvaluator>> {
    let mut tasks = Vec::new();
    for NamedTask { name, what } in &options.tasks {
        let spec = match what {
            TaskSource::File(path) => context
                .defaults
                .task(path)
                .map_err(|e| e.at(format!("task {name}")))?,
            TaskSource::Evaluator(spec) => spec.clone(),
        };
        let evaluator = context.registry.build::<dyn Evaluator>(&spec)?;
        tasks.push((name.clone(), evaluator));
    }
    Ok(tasks)
}

fn windows(
    context: &Context,
    options: &EvalOptions,
    folder: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<Option<Windows>> {
    if options.data.is_empty() {
        return Ok(None);
    }
    let seq_len = seq_len_or_default(options.seq_len, &folder.spec, tokenizer);
    let reading = options.text.reading(seq_len, options.samples, context.seed);
    let windows = reading.windows(&options.data, tokenizer, context.registry)?;
    context.warn_of_date(tokenizer);
    windows.check_fits(&folder.spec.options)?;
    Ok(Some(windows))
}

/// The units that a pruned folder kept of this teacher, by its plan.json; none where it was pruned
/// from one of another shape. One of the same shape may be the source as trained further, so it is
/// taken, and said. Components of a turned stream are no channels of the teacher: of those, none.
pub(crate) fn kept_units(
    context: &Context,
    dir: &Path,
    teacher: &ModelFolder,
) -> Result<Option<KeptUnits>> {
    let path = dir.join("plan.json");
    let Some(saved) = saved_plan(&path) else {
        return Ok(None);
    };
    let from_teacher = saved["n_params_source"].as_u64() == Some(teacher.spec.n_params())
        && saved["sizes_source"][HIDDEN].as_u64() == Some(teacher.spec.size(HIDDEN) as u64);
    let loaded = Plan::load_with_source(&path).ok();
    let Some((mut plan, source)) = loaded.filter(|_| from_teacher) else {
        return Ok(None);
    };
    if let Some(source) = source {
        let own = identity_of(teacher)?;
        if !source.has_weights_of(&own) {
            let name = name_of(dir);
            context.progress.note(&format!(
                "`{name}` was pruned from {source}, and its teacher is {own}: the units that it \
                 kept are taken for those of its teacher"
            ));
        }
    }
    if !saved["hidden_basis"].is_null() {
        plan.kept.remove(HIDDEN);
    }
    let taken = match &saved["taken"] {
        Value::Null => Vec::new(),
        taken => serde_json::from_value(taken.clone())
            .map_err(|e| Error::Plan(format!("{}: taken: {e}", path.display())))?,
    };
    Ok(Some(KeptUnits { plan, taken }))
}

fn saved_plan(path: &Path) -> Option<Value> {
    serde_json::from_str(&read_text(path).ok()?).ok()
}
