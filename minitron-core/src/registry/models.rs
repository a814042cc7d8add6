//! From a folder or a config to its spec: the family is found among all that are registered.

use std::path::Path;

use super::Registry;
use crate::checkpoint::{Checkpoint, Config, Remarks};
use crate::error::{Error, Result};
use crate::spec::{CheckpointInfo, Dim, ModelFolder, ModelSpec};

impl ModelFolder {
    /// Opens a folder: finds the family, and describes and checks the model by it.
    ///
    /// # Errors
    /// `Checkpoint` for anything missing, malformed, mismatched or of an unsupported family.
    pub fn open(dir: &Path, registry: &Registry) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let family = registry.architecture_for(&checkpoint.config)?;
        ModelFolder::of(checkpoint, &family)
    }

    /// The same, described so that layers may differ: by its own family where that states sizes by
    /// layer, else by the one that has the same model in such a form.
    ///
    /// # Errors
    /// As [`ModelFolder::open`]; `Recipe` where there is no such form.
    pub fn open_with_layers_apart(dir: &Path, registry: &Registry) -> Result<Self> {
        let mut checkpoint = Checkpoint::open(dir)?;
        let mut family = registry.architecture_for(&checkpoint.config)?;
        // What its own family refuses is refused in its words.
        ModelSpec::of(&family, &CheckpointInfo::config_alone(&checkpoint.config))?;
        if let Some(config) = family.with_layers_apart(&checkpoint.config) {
            family = registry.architecture_for(&config)?;
            checkpoint.config = config;
        }
        let folder = ModelFolder::of(checkpoint, &family)?;
        if folder.spec.dims.values().any(Dim::is_listed) {
            return Ok(folder);
        }
        Err(Error::Recipe(format!(
            "layers_apart: expected a model that has a form in which layers differ, `{}` has none; \
             leave it out, and give all layers one size",
            folder.spec.architecture
        )))
    }
}

impl ModelSpec {
    /// Describes a model that has no weights yet.
    ///
    /// # Errors
    /// `Checkpoint` for a config that no family describes.
    pub fn from_config(config: &Config, registry: &Registry) -> Result<ModelSpec> {
        ModelSpec::of(
            &registry.architecture_for(config)?,
            &CheckpointInfo::config_alone(config),
        )
    }

    /// The same, and the config to be written, with what is odd about it.
    ///
    /// # Errors
    /// `Checkpoint` for a config that no family describes.
    pub fn of_config(config: &Config, registry: &Registry) -> Result<(ModelSpec, Remarks)> {
        let (mut config, mut remarks) = (config.clone(), Remarks::default());
        let spec = Self::from_config(&config, registry)?.into_written(&mut config, &mut remarks);
        Ok((spec, remarks))
    }
}
