//! What a training starts from.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::options::TrainingOptions;
use crate::jobs::card::name_of;
use crate::jobs::context::Context;
use crate::train::{ShardedLayers, Sharding};
use minitron_core::checkpoint::{Config, TensorSource, companions};
use minitron_core::digest;
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Transformer, fresh_weights};
use minitron_core::spec::{ModelFolder, ModelSpec};

/// What is trained, before it is loaded.
pub(crate) struct WeightStart {
    /// How others call it; none where the weights are fresh.
    pub name: Option<String>,
    pub dir: PathBuf,
    pub config: Config,
    pub spec: ModelSpec,
    pub source: Box<dyn TensorSource>,
    /// Weight files; none where the weights are fresh.
    pub files: Vec<PathBuf>,
}

impl WeightStart {
    /// A model to go on with, as somebody named it.
    pub fn folder(model: &str, folder: ModelFolder) -> Self {
        let ModelFolder {
            checkpoint, spec, ..
        } = folder;
        let files = checkpoint.tensors.paths().map(Path::to_path_buf).collect();
        let name = Some(name_of(model, &checkpoint.dir));
        WeightStart {
            name,
            dir: checkpoint.dir,
            config: checkpoint.config,
            spec,
            source: Box::new(checkpoint.tensors),
            files,
        }
    }

    /// The model that learns, and where its layers are if not with it.
    pub fn load(
        &self,
        context: &Context,
        options: &TrainingOptions,
    ) -> Result<(Transformer, Option<Rc<ShardedLayers>>)> {
        let source = self.source.as_ref();
        if !shards_layers(context, options) {
            return Ok((context.load(source, &self.spec, true)?, None));
        }
        let load_options = LoadOptions {
            trainable: true,
            ..context.load_options()
        };
        let (model, layers) = ShardedLayers::load(source, &self.spec, load_options, context.ranks)?;
        Ok((model, Some(layers)))
    }

    /// Of everything that training starts from.
    pub fn digest(&self, seed: u64) -> Result<String> {
        let digest = digest_of(&self.config, self.files.iter().map(PathBuf::as_path))?;
        Ok(if self.files.is_empty() {
            digest::of_text(&format!("{digest} {seed}"))
        } else {
            digest
        })
    }

    /// Random weights of a config's shapes.
    pub fn fresh(context: &Context, path: &Path) -> Result<Self> {
        let _span = tracing::info_span!("fresh weights").entered();
        let (mut spec, remarks) = ModelSpec::of_config(&Config::load(path)?, context.registry)?;
        context.say(&remarks);
        spec.check_computable()?;
        say_fresh(&mut spec.config);
        let config = spec.config.clone();
        let source = Box::new(fresh_weights(&spec, context.seed)?);
        let dir = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_path_buf();
        // Now, rather than when they are copied at the end.
        companions(&dir)?;
        Ok(WeightStart {
            name: None,
            dir,
            config,
            spec,
            source,
            files: Vec::new(),
        })
    }
}

/// Whether each rank keeps a part of every layer.
pub(crate) fn shards_layers(context: &Context, options: &TrainingOptions) -> bool {
    options.shard == Sharding::Layers && context.ranks.has_others()
}

/// Has a config say the type of fresh weights, where it says one.
fn say_fresh(config: &mut Config) {
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config.set(key, "float32");
        }
    }
}

/// Of a config and the weights in files.
pub(crate) fn digest_of<'p>(
    config: &Config,
    files: impl IntoIterator<Item = &'p Path>,
) -> Result<String> {
    let _span = tracing::info_span!("digest").entered();
    let mut text = config.to_json()?;
    for file in files {
        text += &digest::of_file(file)?;
    }
    Ok(digest::of_text(&text))
}
