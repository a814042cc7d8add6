//! A checkpoint together with its family's description, checked against each other.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Blueprint, TensorSpec};
use crate::checkpoint::{Checkpoint, Config, TensorSource};
use crate::error::Result;
use crate::registry::Registry;

/// What an architecture may look at: the config, and the tensor names where there is a file.
///
/// One family is stored under several spellings (with or without a prefix, a pooler, a head); the names decide.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// `config.json`.
    pub config: &'a Config,
    names: Option<BTreeSet<String>>,
}

impl<'a> Evidence<'a> {
    /// With a file.
    pub fn of(config: &'a Config, source: &dyn TensorSource) -> Self {
        Evidence { config, names: Some(source.names().into_iter().collect()) }
    }

    /// From a config alone: the family's own spelling.
    pub fn config_alone(config: &'a Config) -> Self {
        Evidence { config, names: None }
    }

    /// Whether the file holds a tensor; `otherwise` where there is no file.
    pub fn has(&self, name: &str, otherwise: bool) -> bool {
        self.names.as_ref().map_or(otherwise, |names| names.contains(name))
    }
}

/// A model folder, opened, described and checked.
#[derive(Debug)]
pub struct ModelFolder {
    /// Files.
    pub checkpoint: Checkpoint,
    /// Description.
    pub blueprint: Blueprint,
    /// Tensors that the family does not know and that are not carried over.
    pub unknown_tensors: Vec<String>,
}

impl ModelFolder {
    /// Opens a folder: finds the family, describes the model, compares every tensor's shape with the description. Whatever
    /// reads a weight afterwards is told where it is NaN or infinite.
    ///
    /// # Errors
    /// `Checkpoint` for anything missing, malformed, mismatched or of an unsupported family.
    pub fn open(dir: &Path, registry: &Registry) -> Result<Self> {
        let mut checkpoint = Checkpoint::open(dir)?;
        let architecture = registry.architecture_for(&checkpoint.config)?;
        let blueprint = architecture.blueprint(&Evidence::of(&checkpoint.config, &checkpoint.tensors))?;
        let unknown_tensors = blueprint.check(&checkpoint.tensors)?;
        checkpoint.tensors.expect_weights(blueprint.tensors.iter().map(TensorSpec::name));
        Ok(ModelFolder { checkpoint, blueprint, unknown_tensors })
    }

    /// Stored bytes of the weights that the family knows.
    pub fn n_bytes(&self) -> u64 {
        let n_bytes = |name: String| self.checkpoint.tensors.info(&name)?.n_bytes();
        self.blueprint.tensors.iter().filter_map(|tensor| n_bytes(tensor.name())).sum()
    }
}

impl Blueprint {
    /// Describes a model that has no weights yet.
    pub fn from_config(config: &Config, registry: &Registry) -> Result<Blueprint> {
        registry.architecture_for(config)?.blueprint(&Evidence::config_alone(config))
    }
}
