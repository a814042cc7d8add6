//! Parts and kept units to index lists. Pure integers.

use crate::plan::Plan;
use crate::spec::{DEPTH, ModelSpec, Side};

/// The units of a dim that stay, where the plan says which.
pub fn kept_of<'p>(plan: &'p Plan) -> impl Fn(&str) -> Option<&'p [usize]> {
    |dim| plan.kept.get(dim).map(Vec::as_slice)
}

/// Positions along a side that stay; `None` when all of them do.
pub fn side_indices(side: &Side, spec: &ModelSpec, plan: &Plan) -> Option<Vec<usize>> {
    let size_of = |dim: &str| spec.dims.get(dim).map(|dim| dim.size);
    side.dims().iter().find(|dim| {
        let kept = plan.kept.get(**dim);
        kept.is_some_and(|kept| Some(kept.len()) != size_of(dim))
    })?;
    Some(side.positions(&size_of, &kept_of(plan)))
}

/// The source's layer behind each of the student's.
pub fn source_layers(spec: &ModelSpec, plan: &Plan) -> Vec<usize> {
    plan.kept
        .get(DEPTH)
        .cloned()
        .unwrap_or_else(|| (0..spec.n_layers()).collect())
}
