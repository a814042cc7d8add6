//! Every group names a dim of the spec and has as many units as it; no dim is named twice.

use std::collections::HashSet;

use minitron_core::contract::Axis;
use minitron_core::error::Result;
use minitron_core::plan::Space;
use minitron_core::prune::Student;

use super::samples::{halves, random_rankings};
use super::{SampleModel, Trial, UNTRIED};

/// Tries an axis on every sample: its groups, and a student that it alone shrinks.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let mut n_groups = 0_usize;
    for sample in samples {
        n_groups += groups(trial, sample)?;
    }
    if n_groups == 0 {
        return Ok(format!("{UNTRIED} a model has such an axis"));
    }
    Ok("every group a dim of the model, once, and students at its sizes".into())
}

fn groups(trial: &Trial, sample: &SampleModel) -> Result<usize> {
    let (axis, spec) = (trial.build::<dyn Axis>()?, &sample.spec);
    let groups = axis.groups(spec)?;
    let mut seen = HashSet::new();
    for group in &groups {
        let size = spec.dims.get(&group.dim).map(|dim| dim.size);
        let is_dim = size == Some(group.n_units) && seen.insert(&group.dim);
        let message = format!(
            "group `{}` of {} units; the model has {size:?}, once",
            group.dim, group.n_units
        );
        trial.ensure(is_dim, message)?;
        let is_even =
            group.n_parts > 0 && group.n_units.is_multiple_of(group.n_parts) && group.block > 0;
        let message = format!(
            "group `{}`: {} units in {} parts",
            group.dim, group.n_units, group.n_parts
        );
        trial.ensure(is_even, message)?;
    }
    let space = Space::new(spec, &[axis])?;
    // Where two dims follow each other, shrinking one takes scores of both.
    let mut scored = sample.groups(trial.registry)?;
    scored.extend(
        groups
            .iter()
            .filter(|own| !scored.iter().any(|other| other.dim == own.dim))
            .cloned()
            .collect::<Vec<_>>(),
    );
    let rankings = random_rankings(&scored, 3)?;
    for sizes in halves(&space) {
        let plan = space.plan(&sizes, &rankings, spec)?;
        Student::new(&sample.source, spec, &plan)?;
    }
    Ok(groups.len())
}
