//! A distillation's teacher, and how it is asked.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::compute_type::ComputeType;
use super::start::digest_of;
use crate::train::CacheType;
use minitron_core::error::Result;
use minitron_core::spec::ModelFolder;

/// How the teacher is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TeacherOptions {
    /// Whether its layers are read from its files for every batch instead of being held in memory.
    pub stream_teacher: bool,
    /// What it computes in where that is not what the student does.
    pub teacher_dtype: Option<ComputeType>,
    /// Folder that remembers its largest probabilities of every window, over epochs and runs.
    pub teacher_cache: Option<PathBuf>,
    /// Probabilities remembered per token.
    pub cache_top_k: usize,
    /// Their type.
    pub cache_type: CacheType,
    /// The teacher goes on learning on the same text, at this share of the student's learning rate.
    pub correct_teacher: Option<f64>,
    /// Whether a teacher with another tokenizer, or scores of another model, are taken, with a warning.
    pub any_model: bool,
}

impl Default for TeacherOptions {
    fn default() -> Self {
        TeacherOptions {
            stream_teacher: false,
            teacher_dtype: None,
            teacher_cache: None,
            cache_top_k: 64,
            cache_type: CacheType::F16,
            correct_teacher: None,
            any_model: false,
        }
    }
}

/// A distillation's teacher.
#[derive(Debug)]
pub(super) struct TeacherSource {
    /// How others call it.
    pub name: String,
    pub folder: ModelFolder,
    pub options: TeacherOptions,
    /// Digest of its config and weights.
    pub digest: String,
    /// Token ids that its students are compared with it over: its own, or theirs where those are fewer.
    pub vocab: usize,
}

impl TeacherSource {
    /// A teacher for students of its own vocabulary, under the name that cards give it.
    pub fn new(name: String, folder: ModelFolder, options: &TeacherOptions) -> Result<Self> {
        let digest = digest_of(&folder.checkpoint.config, folder.checkpoint.tensors.paths())?;
        let vocab = folder.spec.options.vocab;
        Ok(TeacherSource { name, folder, options: options.clone(), digest, vocab })
    }
}
