//! A folder's kind, and what is told of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::comparison::Comparison;
use super::maps::HeatMap;
use super::pruning::Pruning;
use super::repeat::Repeat;
use super::search::SearchReport;
use super::training::TrainingReport;
use super::warned::Warned;
use super::{COMPARISON, RUN, SEARCH, name_of};
use minitron_core::error::{Error, Result};

pub(super) const SCORES: &str = "scores.safetensors";
pub(super) const RESULT: &str = "result.json";

/// What made a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderKind {
    /// `run`, or `demo`.
    Run,
    /// `search`.
    Search,
    /// `compare`.
    Comparison,
    /// A single job.
    Stage,
}

impl FolderKind {
    /// By the file that a kind of job leaves.
    ///
    /// # Errors
    /// `Recipe` for a folder that no job wrote.
    pub(super) fn of(dir: &Path) -> Result<Self> {
        let of_file = [
            (COMPARISON, Self::Comparison),
            (SEARCH, Self::Search),
            (RUN, Self::Run),
            (SCORES, Self::Stage),
            (RESULT, Self::Stage),
        ];
        for (name, kind) in of_file {
            if dir.join(name).is_file() {
                return Ok(kind);
            }
        }
        if TrainingReport::is_in(dir) || Pruning::is_in(dir) {
            return Ok(Self::Stage);
        }
        let dir = dir.display();
        Err(Error::Recipe(format!(
            "`{dir}`: expected the folder of a run, search, comparison or one of their stages \
             (run.json, search.json, compare.json, metrics.jsonl, plan.json, scores.safetensors or \
             result.json), found none of these files"
        )))
    }
}

/// What a folder says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Folder {
    /// What to call it.
    pub title: String,
    /// Where it is.
    pub dir: PathBuf,
    /// What made it.
    pub kind: FolderKind,
    /// Models, texts, versions, seed, device: names and values.
    pub facts: Vec<(String, String)>,
    /// What was done, in order.
    pub stages: Vec<StageSummary>,
    /// Scores.
    pub importance: Vec<HeatMap>,
    /// Plans.
    pub prunings: Vec<Pruning>,
    /// Curves.
    pub trainings: Vec<TrainingReport>,
    /// Measurements.
    pub evaluations: Vec<EvaluationReport>,
    /// Generated text.
    pub samples: Vec<SampleReport>,
    /// Of a search.
    pub search: Option<SearchReport>,
    /// Of a comparison.
    pub comparison: Option<Comparison>,
    /// How to repeat it.
    pub repeat: Option<Repeat>,
    /// What was warned of.
    pub warnings: Vec<Warned>,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// One job of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageSummary {
    /// Its folder.
    pub name: String,
    /// For example `distill`.
    pub job: String,
    /// Whether it has a result.
    pub done: bool,
    /// Taken.
    pub seconds: f64,
    /// Of its main work.
    pub tokens_per_second: Option<f64>,
    /// The process's largest resident memory while it ran; by the end of a training where the run
    /// says no more.
    pub peak_bytes: Option<u64>,
    /// Digest of all that its result follows from.
    pub inputs: String,
}

/// One evaluation's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationReport {
    /// What was measured.
    pub model: String,
    /// On which text.
    pub data: Vec<String>,
    /// By name; those of tasks begin with the task's.
    pub values: BTreeMap<String, f64>,
}

/// Generated text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleReport {
    /// What generated it.
    pub model: String,
    /// What it goes on with.
    pub prompt: String,
    /// Prompt and continuation.
    pub text: String,
}

impl Folder {
    /// Of which nothing is read yet.
    pub(super) fn new(dir: &Path, kind: FolderKind) -> Self {
        Folder {
            title: name_of(dir),
            dir: dir.to_path_buf(),
            kind,
            facts: Vec::new(),
            stages: Vec::new(),
            importance: Vec::new(),
            prunings: Vec::new(),
            trainings: Vec::new(),
            evaluations: Vec::new(),
            samples: Vec::new(),
            search: None,
            comparison: None,
            repeat: None,
            warnings: Vec::new(),
            notes: Vec::new(),
        }
    }
}
