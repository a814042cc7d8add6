//! Parts and kept units to index lists. Pure integers.

use crate::blueprint::{Blueprint, DEPTH, Part, Side};
use crate::plan::Plan;

/// Positions along a side that stay; `None` when all of them do.
pub fn side_indices(side: &Side, blueprint: &Blueprint, plan: &Plan) -> Option<Vec<usize>> {
    let mut indices = Vec::new();
    let mut start = 0usize;
    let mut whole = true;
    for part in &side.0 {
        match part {
            Part::Fixed(n) => {
                indices.extend(start..start + n);
                start += n;
            }
            Part::Units { dim, block } => {
                let size = blueprint.dims.get(dim).map_or(0, |d| d.size);
                match plan.kept.get(dim) {
                    Some(kept) => {
                        whole &= kept.len() == size;
                        indices.extend(kept.iter().flat_map(|unit| start + unit * block..start + (unit + 1) * block));
                    }
                    None => indices.extend(start..start + size * block),
                }
                start += size * block;
            }
        }
    }
    (!whole).then_some(indices)
}

/// The source's layer behind each of the student's.
pub fn source_layers(blueprint: &Blueprint, plan: &Plan) -> Vec<usize> {
    plan.kept.get(DEPTH).cloned().unwrap_or_else(|| (0..blueprint.n_layers()).collect())
}
