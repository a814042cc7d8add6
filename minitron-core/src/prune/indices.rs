//! Parts and kept units to index lists. Pure integers.

use crate::blueprint::{Blueprint, DEPTH, Side};
use crate::plan::Plan;

/// Positions along a side that stay; `None` when all of them do.
pub fn side_indices(side: &Side, blueprint: &Blueprint, plan: &Plan) -> Option<Vec<usize>> {
    let size_of = |dim: &str| blueprint.dims.get(dim).map(|dim| dim.size);
    let is_cut = |dim: &&str| plan.kept.get(*dim).is_some_and(|kept| Some(kept.len()) != size_of(dim));
    side.dims().iter().find(|dim| is_cut(dim))?;
    Some(side.positions(&size_of, &|dim| plan.kept.get(dim).map(Vec::as_slice)))
}

/// The source's layer behind each of the student's.
pub fn source_layers(blueprint: &Blueprint, plan: &Plan) -> Vec<usize> {
    plan.kept.get(DEPTH).cloned().unwrap_or_else(|| (0..blueprint.n_layers()).collect())
}
