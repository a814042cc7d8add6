//! A distillation's teacher, and how it is asked.

use std::path::PathBuf;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::start::digest_of;
use crate::jobs::compute_type::ComputeType;
use crate::train::CacheType;
use minitron_core::error::Result;
use minitron_core::spec::ModelFolder;

/// How the teacher is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct TeacherOptions {
    /// Read the teacher's layers from its files for every batch instead of holding it in memory.
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub stream_teacher: bool,
    /// What the teacher computes in: bf16 is faster than f32 where the processor has it, and takes
    /// half the memory [default: as --dtype]
    #[arg(long, value_name = "TYPE")]
    pub teacher_dtype: Option<ComputeType>,
    /// Folder that remembers the teacher's largest probabilities: every window is asked once, over
    /// epochs and runs.
    #[arg(long, value_name = "DIR")]
    #[schemars(extend("by_content" = true))]
    pub teacher_cache: Option<PathBuf>,
    /// Probabilities remembered per token.
    #[arg(long, default_value_t = Self::default().cache_top_k, value_name = "K")]
    pub cache_top_k: usize,
    /// Type of the remembered log-probabilities: f16 or f32.
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub cache_type: CacheType,
    /// Token ids drawn from the teacher's whole distribution and remembered per token, instead of
    /// its largest probabilities, for losses that are linear in it: unbiased where those are cut;
    /// 12 to 50 are usual.
    #[arg(long, value_name = "N", conflicts_with_all = ["cache_top_k", "cache_type"])]
    pub cache_samples: Option<usize>,
    /// Let the teacher learn on, from the labels of the same text, at this share of the student's
    /// learning rate: 0.2 is a start.
    #[arg(long, value_name = "SHARE")]
    pub correct_teacher: Option<f64>,
    /// Take a teacher with another tokenizer, or scores of another model, with a warning.
    #[arg(long)]
    #[schemars(extend("decides" = false))]
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
            cache_samples: None,
            correct_teacher: None,
            any_model: false,
        }
    }
}

/// A distillation's teacher.
#[derive(Debug)]
pub(crate) struct TeacherSource {
    /// How others call it.
    pub name: String,
    pub folder: ModelFolder,
    pub options: TeacherOptions,
    /// Digest of its config and weights.
    pub digest: String,
    /// Token ids that its students are compared with it over: its own, or theirs where those are
    /// fewer.
    pub vocab: usize,
    /// Whether ranks that hold it in memory keep a part of its layers each.
    pub is_sharded: bool,
}

impl TeacherSource {
    /// A teacher for students of its own vocabulary, under the name that cards give it.
    pub fn new(name: String, folder: ModelFolder, options: &TeacherOptions) -> Result<Self> {
        let digest = digest_of(&folder.checkpoint.config, folder.checkpoint.tensors.paths())?;
        let vocab = folder.spec.options.vocab;
        Ok(TeacherSource {
            name,
            folder,
            options: options.clone(),
            digest,
            vocab,
            is_sharded: false,
        })
    }
}
