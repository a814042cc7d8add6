//! A pruned model as a view over the whole one: slices on read, the source stays as it is.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::Tensor;

use super::config::student_config;
use super::indices::{side_indices, source_layers};
use crate::blueprint::{Blueprint, Evidence, TensorSpec};
use crate::checkpoint::{Config, TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::registry::Registry;

/// The tensors of a student, read through the teacher's.
pub struct PrunedView<'a> {
    source: &'a dyn TensorSource,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    source_name: String,
    info: TensorInfo,
    /// Kept positions per side; `None` keeps the side whole.
    kept: Vec<Option<Vec<usize>>>,
}

impl<'a> PrunedView<'a> {
    /// Works out names, shapes and index lists; reads no tensor.
    ///
    /// # Errors
    /// `Internal` when the source lacks a tensor: the blueprint was checked against it before.
    pub fn new(source: &'a dyn TensorSource, blueprint: &Blueprint, plan: &Plan) -> Result<Self> {
        let layers = source_layers(blueprint, plan);
        let mut entries = BTreeMap::new();
        for spec in &blueprint.tensors {
            let student_layer = match spec.layer {
                Some(layer_idx) => match layers.iter().position(|&kept| kept == layer_idx) {
                    Some(position) => Some(position),
                    None => continue,
                },
                None => None,
            };
            entries.insert(spec.name_at(student_layer), entry_of(source, spec, blueprint, plan)?);
        }
        Ok(PrunedView { source, entries })
    }
}

fn entry_of(source: &dyn TensorSource, spec: &TensorSpec, blueprint: &Blueprint, plan: &Plan) -> Result<Entry> {
    let source_name = spec.name();
    let mut info =
        source.info(&source_name).ok_or_else(|| Error::Internal(format!("no tensor `{source_name}` to prune")))?;
    let kept: Vec<Option<Vec<usize>>> = spec.sides.iter().map(|side| side_indices(side, blueprint, plan)).collect();
    for (len, kept) in info.shape.iter_mut().zip(&kept) {
        if let Some(kept) = kept {
            *len = kept.len();
        }
    }
    Ok(Entry { source_name, info, kept })
}

impl TensorSource for PrunedView<'_> {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get(name).map(|entry| entry.info.clone())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let entry = self.entries.get(name).ok_or_else(|| Error::Internal(format!("no tensor `{name}` in the view")))?;
        let mut kept = entry.kept.clone();
        // The source's rows from the first kept to the last one, and of those the kept ones.
        let span = match kept.first_mut() {
            Some(Some(first)) => {
                let wanted = first.get(rows).unwrap_or_default().to_vec();
                let from = wanted.first().copied().unwrap_or(0);
                let to = wanted.last().map_or(from, |last| last + 1);
                *first = wanted.into_iter().map(|row| row - from).collect();
                from..to
            }
            _ => rows,
        };
        slice(&self.source.read_rows(&entry.source_name, span)?, &kept)
    }
}

/// Takes the kept positions of every side. The only place that slices weights.
fn slice(tensor: &Tensor, kept: &[Option<Vec<usize>>]) -> Result<Tensor> {
    let mut sliced = tensor.shallow_clone();
    for (side, kept) in kept.iter().enumerate() {
        if let Some(kept) = kept {
            let indices: Vec<i64> = kept.iter().map(|&position| position as i64).collect();
            sliced = sliced.f_index_select(side as i64, &Tensor::f_from_slice(&indices)?)?;
        }
    }
    Ok(sliced.f_contiguous()?)
}

/// A student before it is written: its config, its description and its tensors.
pub struct Student<'a> {
    /// What its `config.json` will say.
    pub config: Config,
    /// The family's description of that config.
    pub blueprint: Blueprint,
    /// Its tensors.
    pub view: PrunedView<'a>,
}

impl<'a> Student<'a> {
    /// Applies a plan to a model, and checks the result as if it were read from a folder.
    ///
    /// # Errors
    /// `Plan` when the student's config does not describe the pruned tensors: no config of the family can.
    pub fn new(source: &'a dyn TensorSource, blueprint: &Blueprint, plan: &Plan, registry: &Registry) -> Result<Self> {
        let config = student_config(blueprint, plan);
        let view = PrunedView::new(source, blueprint, plan)?;
        let student = registry.architecture_for(&config)?.blueprint(&Evidence::of(&config, &view))?;
        student.check(&view).map_err(|e| Error::Plan(format!("no config of this family expresses the plan: {e}")))?;
        let (predicted, found) = (blueprint.n_params_at(&plan.sizes()), student.n_params());
        if predicted != found {
            return Err(Error::Internal(format!("the plan predicts {predicted} parameters, the student has {found}")));
        }
        Ok(Student { config, blueprint: student, view })
    }
}
