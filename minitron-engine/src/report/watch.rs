//! How far a job has come, from the files that it writes on the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use super::comparison::Comparison;
use super::folder::FolderKind;
use super::search::SearchReport;
use super::training::TrainingReport;
use super::warned::Warned;
use super::{RUN, name_of, read_json};
use crate::recipe::{Recipe, RunRecord, StageRecord};
use minitron_core::checkpoint::has_weights;
use minitron_core::error::Result;

/// Folders below a search or comparison that are looked through for the training at work.
const DEPTH: usize = 4;

/// How far a job has come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobProgress {
    /// What to call it.
    pub title: String,
    /// Where it is.
    pub dir: PathBuf,
    /// What runs in it.
    pub kind: FolderKind,
    /// Nothing more will come.
    pub complete: bool,
    /// Seconds since a file last changed: a job that writes nothing any more may have been stopped.
    pub idle_s: Option<f64>,
    /// Its parts in order: stages, rungs or rows.
    pub stages: Vec<StageProgress>,
    /// The training at work, or the last one.
    pub training: Option<TrainingReport>,
    /// Seconds to the end of that training.
    pub eta_s: Option<f64>,
    /// The largest resident memory that a finished stage recorded.
    pub peak_bytes: Option<u64>,
    /// What was warned of so far.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warned>,
}

/// One part of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageProgress {
    /// Its name.
    pub name: String,
    /// What it does.
    pub job: String,
    /// How it stands.
    pub state: StageState,
    /// Taken.
    pub seconds: Option<f64>,
    /// What it came to.
    pub loss: Option<f64>,
}

/// How a part stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// Begun, without a result: at work, or interrupted.
    Running,
    /// Has a result.
    Done,
    /// Ended without one.
    Failed,
    /// Not begun.
    Waiting,
}

/// Looks into a folder.
///
/// # Errors
/// As [`gather`](super::gather).
pub fn watch(dir: &Path) -> Result<JobProgress> {
    let kind = FolderKind::of(dir)?;
    let mut progress = JobProgress {
        title: name_of(dir),
        dir: dir.to_path_buf(),
        kind,
        complete: false,
        idle_s: None,
        stages: Vec::new(),
        training: None,
        eta_s: None,
        peak_bytes: None,
        warnings: Vec::new(),
    };
    match kind {
        FolderKind::Run => progress.add_run()?,
        FolderKind::Search => progress.add_search()?,
        FolderKind::Comparison => progress.add_comparison()?,
        FolderKind::Stage => progress.add_stage(),
    }
    if !progress.complete {
        progress.eta_s = progress.training.as_ref().and_then(TrainingReport::eta_s);
    }
    let newest = newest_below(dir, DEPTH, &|_| true);
    progress.idle_s = newest
        .and_then(|(time, _)| Some(SystemTime::now().duration_since(time).ok()?.as_secs_f64()));
    Ok(progress)
}

impl JobProgress {
    fn add_run(&mut self) -> Result<()> {
        let record: RunRecord = read_json(&self.dir.join(RUN))?;
        self.stages = record.stages.iter().map(of_record).collect();
        self.warnings = Warned::of_run(&record);
        let planned = Recipe::load(Path::new(&record.recipe))
            .map(|recipe| recipe.stages)
            .unwrap_or_default();
        for stage in planned {
            if record.stages.iter().all(|begun| begun.name != stage.name) {
                self.stages.push(StageProgress::new(
                    stage.name,
                    stage.options.job(),
                    StageState::Waiting,
                ));
            }
        }
        self.complete = !self.stages.is_empty()
            && self
                .stages
                .iter()
                .all(|stage| stage.state == StageState::Done);
        self.peak_bytes = record.stages.iter().filter_map(peak_bytes).max();
        let mut latest_first = record.stages.iter().rev();
        let last_training =
            latest_first.find(|stage| TrainingReport::is_in(&self.dir.join(&stage.name)));
        let is_complete = self.complete;
        let current = last_training.filter(|stage| is_complete || stage.result.is_none());
        let Some(stage) = current else {
            return Ok(());
        };
        let mut training = TrainingReport::read(&self.dir.join(&stage.name), &stage.name)?;
        training.job = Some(stage.job.clone());
        if let Some(n_tokens) = stage.options.pointer("/tokens").and_then(Value::as_u64) {
            training.plan_for(n_tokens);
        }
        self.training = Some(training);
        Ok(())
    }

    fn add_stage(&mut self) {
        let name = self.title.clone();
        self.training = TrainingReport::read(&self.dir, &name).ok();
        // The model is written when the last step is done; one that lay there before is older than
        // the last step.
        let weights = ["model.safetensors", "model.safetensors.index.json"]
            .iter()
            .filter_map(|name| changed(&self.dir.join(name)))
            .max();
        let is_written =
            has_weights(&self.dir) && weights >= changed(&self.dir.join("metrics.jsonl"));
        self.complete = self.training.is_none() || is_written;
    }

    fn add_search(&mut self) -> Result<()> {
        let search = SearchReport::read(&self.dir)?;
        self.complete = search.is_complete();
        self.warnings = Warned::of_all(&search.warnings);
        for (idx, rung) in search.rungs.iter().enumerate() {
            let job = format!("{} candidates", rung.n_candidates);
            let seconds = rung.seconds;
            self.stages.push(StageProgress {
                seconds,
                ..StageProgress::new(format!("rung {idx}"), &job, StageState::Done)
            });
        }
        if let Some(leader) = search.leader() {
            let state = if self.complete {
                StageState::Done
            } else {
                StageState::Running
            };
            let job = if self.complete { "winner" } else { "leads" };
            self.stages.push(StageProgress {
                loss: leader.loss,
                ..StageProgress::new(leader.name.clone(), job, state)
            });
        }
        self.add_training_below();
        Ok(())
    }

    fn add_comparison(&mut self) -> Result<()> {
        let comparison = Comparison::read(&self.dir)?;
        self.complete = comparison.is_complete();
        self.warnings = Warned::of_comparison(&comparison);
        if let Some(title) = &comparison.title {
            self.title.clone_from(title);
        }
        for row in &comparison.rows {
            let state = match row.status.as_deref() {
                _ if row.is_failed() => StageState::Failed,
                Some("waiting") => StageState::Waiting,
                Some("running") => StageState::Running,
                _ => StageState::Done,
            };
            let loss = row.values.get("loss").and_then(|measured| measured.mean);
            self.stages.push(StageProgress {
                loss,
                ..StageProgress::new(row.title().to_owned(), "row", state)
            });
        }
        self.add_training_below();
        Ok(())
    }

    /// The training whose metrics changed last, while there is one.
    fn add_training_below(&mut self) {
        if self.complete {
            return;
        }
        let newest = newest_below(&self.dir, DEPTH, &is_metrics);
        let dir = newest.and_then(|(_, path)| Some(path.parent()?.to_path_buf()));
        self.training = dir.and_then(|dir| TrainingReport::read(&dir, &name_of(&dir)).ok());
    }
}

impl StageProgress {
    fn new(name: String, job: &str, state: StageState) -> Self {
        StageProgress {
            name,
            job: job.to_owned(),
            state,
            seconds: None,
            loss: None,
        }
    }
}

fn of_record(stage: &StageRecord) -> StageProgress {
    let state = if stage.result.is_some() {
        StageState::Done
    } else {
        StageState::Running
    };
    let loss = stage
        .result
        .as_ref()
        .and_then(|result| result.pointer("/loss")?.as_f64());
    let seconds = stage.result.is_some().then_some(stage.seconds);
    StageProgress {
        seconds,
        loss,
        ..StageProgress::new(stage.name.clone(), &stage.job, state)
    }
}

/// While a stage ran; by the end of its training where the run says no more.
fn peak_bytes(stage: &StageRecord) -> Option<u64> {
    stage.peak_bytes.or_else(|| {
        let result = stage.result.as_ref()?;
        result.pointer("/memory/peak_bytes")?.as_u64()
    })
}

fn is_metrics(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "metrics.jsonl")
}

/// When a file changed last.
fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// The file below a folder that changed last.
fn newest_below(
    dir: &Path,
    depth: usize,
    wanted: &dyn Fn(&Path) -> bool,
) -> Option<(SystemTime, PathBuf)> {
    let entries = fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok());
    let newest = entries.filter_map(|entry| match entry.file_type().ok()? {
        kind if kind.is_dir() && depth > 0 => newest_below(&entry.path(), depth - 1, wanted),
        kind if kind.is_file() && wanted(&entry.path()) => {
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        }
        _ => None,
    });
    newest.max()
}
