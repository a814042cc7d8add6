//! Scores by `metric/dim`, and their file.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use super::observation::to_vec;
use crate::checkpoint::{Identity, MemorySource, Reader, TensorSource, write_tensors_about};
use crate::error::{Error, IoContext, Result};
use crate::output::replace_file;
use crate::plugin_spec::PluginSpec;

/// One score per unit for each scored dim, by `metric/dim`; f32, higher = keep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// For example `activation/mlp.3`.
    pub by_name: BTreeMap<String, Vec<f32>>,
    /// Scores of the same units over resampled windows, by `metric/dim`; `metric/dim@bootstrap`
    /// [replicates, U] in the file.
    pub replicates: BTreeMap<String, Vec<Vec<f32>>>,
    /// Whose units they are of; files of earlier versions do not say.
    pub model: Option<Identity>,
    /// Digest of the windows that were looked at.
    pub data: Option<String>,
}

/// Key of the windows' digest in the file's header.
const DATA: &str = "data";

/// Marks the replicates of a score.
const BOOTSTRAP: &str = "@bootstrap";

/// A metric as a user states it: its plugin, and the label under which its scores are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedMetric {
    /// The part before `/`: the tag, or `as=LABEL`.
    pub label: String,
    /// The plugin, without `as`.
    pub spec: PluginSpec,
}

impl NamedMetric {
    /// Splits `as=LABEL` off.
    pub fn new(mut spec: PluginSpec) -> Result<Self> {
        let label = match spec.take("as") {
            None => spec.tag.clone(),
            Some(serde_json::Value::String(label)) if !label.is_empty() && !label.contains('/') => {
                label
            }
            Some(other) => {
                return Err(Error::Recipe(format!(
                    "`as={other}`: expected a word without `/`"
                )));
            }
        };
        Ok(NamedMetric { label, spec })
    }
}

impl Scores {
    /// The scores of a dim: by the named metric, or by the one metric that scored it.
    ///
    /// # Errors
    /// `Recipe` when no metric, or more than one, scored the dim.
    pub fn of(&self, dim: &str, metric: Option<&str>) -> Result<&[f32]> {
        let mut found = self.by_name.iter().filter(|(name, _)| {
            name.split_once('/')
                .is_some_and(|(label, of)| of == dim && metric.is_none_or(|wanted| wanted == label))
        });
        match (found.next(), found.next()) {
            (Some((_, scores)), None) => Ok(scores),
            (None, _) => Err(Error::Recipe(format!(
                "the scores hold nothing for `{dim}`; score it first (known: {})",
                self.by_name.keys().cloned().collect::<Vec<_>>().join(", ")
            ))),
            (Some((a, _)), Some((b, _))) => Err(Error::Recipe(format!(
                "`{dim}` is scored by both `{a}` and `{b}`; say which with --by LABEL"
            ))),
        }
    }

    /// Whether some metric scored the dim.
    pub fn covers(&self, dim: &str) -> bool {
        self.by_name
            .keys()
            .any(|name| name.split_once('/').is_some_and(|(_, of)| of == dim))
    }

    /// Writes a safetensors file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut source = MemorySource::default();
        for (name, scores) in &self.by_name {
            source.insert(name.as_str(), &Tensor::f_from_slice(scores)?)?;
        }
        for (name, replicates) in self
            .replicates
            .iter()
            .filter(|(_, replicates)| !replicates.is_empty())
        {
            let flat = Tensor::f_from_slice(&replicates.concat())?;
            source.insert(
                format!("{name}{BOOTSTRAP}"),
                &flat.f_view([replicates.len() as i64, -1])?,
            )?;
        }
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).at_path(parent)?;
        }
        let mut metadata = self
            .model
            .as_ref()
            .map(Identity::to_metadata)
            .unwrap_or_default();
        metadata.extend(self.data.iter().map(|data| (DATA.to_owned(), data.clone())));
        replace_file(path, |part| write_tensors_about(part, &source, &metadata))
    }

    /// Reads the file back.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::checkpoint(
                path,
                "no such scores file; `minitron score` writes one",
            ));
        }
        let reader = Reader::open_file(path)?;
        let mut scores = Scores {
            model: Identity::from_metadata(reader.metadata()),
            data: reader.metadata().get(DATA).cloned(),
            ..Scores::default()
        };
        for name in reader.names() {
            let values: Vec<f32> = to_vec(&reader.read(&name)?)?
                .into_iter()
                .map(|v| v as f32)
                .collect();
            if let Some(idx) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::checkpoint(
                    path,
                    format!("`{name}`: score {idx} is {}", values[idx]),
                ));
            }
            match name.strip_suffix(BOOTSTRAP) {
                Some(of) => {
                    let n_units = reader
                        .info(&name)
                        .and_then(|info| info.shape.last().copied())
                        .unwrap_or(1);
                    let replicates = values.chunks(n_units.max(1)).map(<[f32]>::to_vec).collect();
                    scores.replicates.insert(of.to_owned(), replicates);
                }
                None => _ = scores.by_name.insert(name, values),
            }
        }
        Ok(scores)
    }
}
