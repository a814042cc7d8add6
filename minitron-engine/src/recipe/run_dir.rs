//! The folder of a run: one folder a stage, and run.json with versions, inputs and results.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::versions::versions;
use crate::jobs::context::Context;
use crate::jobs::identity::plain_name;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::output::{OutputDir, OutputLock, remove_atomic, write_atomic};

const RECORD: &str = "run.json";

/// What run.json says of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    #[serde(deserialize_with = "plain_name")]
    pub name: String,
    #[serde(rename = "do")]
    pub job: String,
    /// Digest of everything that the result follows from.
    pub inputs: String,
    /// Absent while the stage runs, and after an interruption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    #[serde(default)]
    pub seconds: f64,
    /// The process's largest resident memory while the stage ran; since the process began where
    /// `clear_refs` is not permitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// What it warned of; kept where the stage is skipped later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    #[serde(default)]
    pub options: Value,
    /// Digests of the files that it read, by path.
    #[serde(default)]
    pub input_files: BTreeMap<String, String>,
    /// Digests of what it left, by path in its folder.
    #[serde(default)]
    pub artefacts: BTreeMap<String, String>,
}

/// run.json.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub minitron: String,
    pub recipe: String,
    pub seed: u64,
    pub device: String,
    pub dtype: String,
    /// Of this program and what it was built with, the processor and its threads.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    pub stages: Vec<StageRecord>,
}

/// A run's folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _claim: OutputLock,
    pub(crate) record: RunRecord,
}

impl RunDir {
    /// Opens or starts a run. A folder that holds no run is refused unless `force`, which replaces
    /// any.
    pub fn open(path: &Path, force: bool) -> Result<Self> {
        let file = path.join(RECORD);
        let claim = OutputLock::of(path)?;
        if force && path.exists() {
            OutputDir::refuse_existing(path, true)?;
            remove_atomic(path)?;
        }
        if !file.is_file() {
            OutputDir::refuse_existing(path, force)?;
            fs::create_dir_all(path).at_path(path)?;
            let run_dir = RunDir {
                path: path.to_path_buf(),
                _claim: claim,
                record: RunRecord::default(),
            };
            run_dir.save()?;
            return Ok(run_dir);
        }
        let record = Self::read(path)?;
        Ok(RunDir {
            path: path.to_path_buf(),
            _claim: claim,
            record,
        })
    }

    /// The record of a run, to look at.
    pub(crate) fn read(path: &Path) -> Result<RunRecord> {
        let file = path.join(RECORD);
        let text = match read_text(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::Recipe(format!(
                    "`{}` holds no run: no {RECORD} there",
                    path.display()
                )));
            }
            text => text.at_path(&file)?,
        };
        serde_json::from_str(&text).map_err(|e| {
            Error::Recipe(format!(
                "{}: not a run's record ({e}); --force starts over",
                file.display()
            ))
        })
    }

    /// Says with what a run is made.
    pub(crate) fn describe(&mut self, context: &Context, recipe: &Path) {
        self.record.minitron = env!("CARGO_PKG_VERSION").to_owned();
        self.record.recipe = recipe.display().to_string();
        self.record.seed = context.seed;
        self.record.device = format!("{:?}", context.device).to_lowercase();
        self.record.dtype = format!("{:?}", context.kind).to_lowercase();
        self.record.versions = versions();
    }

    /// A stage's folder.
    pub fn stage(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn find(&self, name: &str) -> Option<&StageRecord> {
        self.record.stages.iter().find(|stage| stage.name == name)
    }

    /// Replaces or adds a stage's record and writes run.json, whole or not at all.
    pub(crate) fn put(&mut self, stage: StageRecord) -> Result<()> {
        let stages = &mut self.record.stages;
        match stages.iter_mut().find(|other| other.name == stage.name) {
            Some(place) => *place = stage,
            None => stages.push(stage),
        }
        self.save()
    }

    pub(crate) fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.record)
            .map_err(|e| Error::Internal(format!("run.json: {e}")))?;
        write_atomic(&self.path.join(RECORD), &(text + "\n"))
    }

    /// run.json as it stands.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(&self.record).unwrap_or_default()
    }
}
