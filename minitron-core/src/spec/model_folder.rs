//! A checkpoint together with its family's description, checked against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Architecture;
use super::renaming::Renaming;
use super::unread::unread;
use super::{Activation, ModelSpec, Param, ParamKind, Role};
use crate::checkpoint::{Checkpoint, Config, Remarks, TensorSource, as_codes, drop_stale};
use crate::error::{Error, Result};

/// What an architecture may look at: the config, and the tensor names where there is a file.
///
/// One family is stored under several spellings (with or without a prefix, a pooler, a head); the
/// names decide.
#[derive(Debug)]
pub struct CheckpointInfo<'a> {
    /// `config.json`.
    pub config: &'a Config,
    /// Shapes by name.
    tensors: Option<BTreeMap<String, Vec<usize>>>,
}

impl<'a> CheckpointInfo<'a> {
    /// With a file.
    pub fn of(config: &'a Config, source: &dyn TensorSource) -> Self {
        let mut tensors = BTreeMap::new();
        for name in source.names() {
            let shape = shape_of(source, &name);
            tensors.insert(name, shape);
        }
        CheckpointInfo {
            config,
            tensors: Some(tensors),
        }
    }

    /// From a config alone: the family's own spelling.
    pub fn config_alone(config: &'a Config) -> Self {
        CheckpointInfo {
            config,
            tensors: None,
        }
    }

    /// Whether the file holds a tensor; `otherwise` where there is no file.
    pub fn has(&self, name: &str, otherwise: bool) -> bool {
        self.tensors
            .as_ref()
            .map_or(otherwise, |tensors| tensors.contains_key(name))
    }

    /// The file's tensors with their shapes; none where there is no file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors
            .iter()
            .flatten()
            .map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }
}

/// A model folder, opened, described and checked.
#[derive(Debug)]
pub struct ModelFolder {
    /// Files.
    pub checkpoint: Checkpoint,
    /// Description.
    pub spec: ModelSpec,
    /// Tensors that the family does not know and that are not carried over.
    pub unknown_tensors: Vec<String>,
}

impl ModelFolder {
    /// Describes a checkpoint and compares every tensor's shape with the description. Whatever
    /// reads a weight afterwards is told where it is NaN or infinite. What is odd about the folder
    /// is in the checkpoint's remarks; keys that describe the files alone are not in its config any
    /// more.
    ///
    /// # Errors
    /// `Checkpoint` for anything missing, malformed or mismatched.
    pub fn of(mut checkpoint: Checkpoint, family: &Arc<dyn Architecture>) -> Result<Self> {
        let spec = named(&mut checkpoint, family)?;
        if let Some(why) = as_codes_or_headless(&checkpoint, &spec) {
            return Err(Error::checkpoint(&checkpoint.dir, why));
        }
        let checked = spec.check(&checkpoint.tensors);
        let unknown_tensors = checked.map_err(|error| with_hint(error, &checkpoint.remarks))?;
        let weights = spec
            .params
            .iter()
            .filter(|tensor| !tensor.is_passed_through());
        checkpoint.tensors.expect_weights(weights.map(Param::name));
        let Checkpoint {
            config, remarks, ..
        } = &mut checkpoint;
        let spec = spec.into_written(config, remarks);
        Ok(ModelFolder {
            checkpoint,
            spec,
            unknown_tensors,
        })
    }

    /// Stored bytes of the weights that the family knows.
    pub fn n_bytes(&self) -> u64 {
        let source = &self.checkpoint.tensors;
        self.spec
            .params
            .iter()
            .filter_map(|tensor| source.info(&tensor.name())?.n_bytes())
            .sum()
    }
}

fn shape_of(source: &dyn TensorSource, name: &str) -> Vec<usize> {
    source.info(name).map(|info| info.shape).unwrap_or_default()
}

/// Describes a model, and has its tensors read by the names of the description, whatever stands in
/// front of them in the file.
fn named(checkpoint: &mut Checkpoint, family: &Arc<dyn Architecture>) -> Result<ModelSpec> {
    let config = &checkpoint.config;
    let names: BTreeSet<String> = checkpoint.tensors.names().into_iter().collect();
    let mut best: Option<(usize, Renaming, ModelSpec)> = None;
    for candidate in Renaming::candidates(&names) {
        let mut tensors = BTreeMap::new();
        for name in &names {
            let described = candidate.names().get(name).unwrap_or(name);
            tensors.insert(described.clone(), shape_of(&checkpoint.tensors, name));
        }
        let evidence = CheckpointInfo {
            config,
            tensors: Some(tensors),
        };
        let spec = ModelSpec::of(family, &evidence)?;
        let (renaming, n_missing) = candidate.completed(&names, &spec);
        if best.as_ref().is_none_or(|(least, ..)| n_missing < *least) {
            best = Some((n_missing, renaming, spec));
        }
        if n_missing == 0 {
            break;
        }
    }
    let (_, renaming, spec) =
        best.ok_or_else(|| Error::Internal("no way to read a file's names".into()))?;
    checkpoint.tensors.rename(renaming.names());
    for said in renaming.said() {
        checkpoint
            .remarks
            .warnings
            .push(format!("{}: {said}", checkpoint.dir.display()));
    }
    Ok(spec)
}

/// An odd index or a second set of weights is the likely cause of what does not fit.
fn with_hint(error: Error, remarks: &Remarks) -> Error {
    match (error, remarks.warnings.first()) {
        (Error::Checkpoint { path, message }, Some(hint)) => Error::Checkpoint {
            path,
            message: format!("{message}; what may be the cause: {hint}"),
        },
        (error, _) => error,
    }
}

/// Why a folder holds no whole model of plain weights, where that can be told.
fn as_codes_or_headless(checkpoint: &Checkpoint, spec: &ModelSpec) -> Option<String> {
    let source = &checkpoint.tensors;
    let missing: Vec<&Param> = spec
        .params
        .iter()
        .filter(|t| source.info(&t.name()).is_none())
        .collect();
    if let [tensor] = missing.as_slice()
        && tensor.role == Role::HEAD
        && tensor.kind == ParamKind::Weight
    {
        return Some(format!(
            "tensor `{}` is missing, all others are there: a model without its head, which \
             config.json does not tie; save it from the class with the head (`transformers` would \
             draw it at random), or set tie_word_embeddings to true where embeddings and head are \
             one",
            tensor.name()
        ));
    }
    spec.params
        .iter()
        .find_map(|tensor| as_codes(&checkpoint.config, source, &tensor.name()))
}

impl ModelSpec {
    /// The same under the config that is written: without keys that describe the source's files,
    /// which are said, as is what the family does not read.
    pub(crate) fn into_written(mut self, config: &mut Config, remarks: &mut Remarks) -> Self {
        remarks
            .warnings
            .extend(unread(config, &self.architecture, self.reads));
        let stale = drop_stale(config);
        remarks.warnings.extend(stale.warnings);
        remarks.notes.extend(stale.notes);
        self.config = config.clone();
        self
    }

    /// Refuses a model whose forward pass is not known, before anything is loaded. What turns
    /// nothing does not ask.
    ///
    /// # Errors
    /// `Checkpoint` naming the key, and the way out.
    pub fn check_computable(&self) -> Result<()> {
        let parts = self.layers.iter().flat_map(|layer| &layer.0);
        if let Some(why) = parts.filter_map(|part| part.mixer.obstacle()).next() {
            Activation::check_words(&self.config)?;
            return Err(self.config.error(why));
        }
        if self.options.causal && !self.config.flag_or("is_causal", true)? {
            return Err(self.config.error(
                "`is_causal`: expected true, got false: `transformers` lets tokens see later ones \
                 too, which is not computed for this family; take it out where it is not meant \
                 (what runs no model works)",
            ));
        }
        Ok(())
    }
}
