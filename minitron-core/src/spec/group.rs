//! What an axis gives: interchangeable units that can be removed one by one.

use super::{ModelSpec, Site};
use super::{split_dim, split_unit};

/// The units of one dim, as metrics and plans see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneGroup {
    /// Full name of the dim: `mlp.3`.
    pub dim: String,
    /// Layer it belongs to, for dims of a layer.
    pub layer: Option<usize>,
    /// Layers of the model.
    pub n_layers: usize,
    /// Where the units are seen, in forward order; nowhere for layers.
    pub sites: Vec<Site>,
    /// Number of units.
    pub n_units: usize,
    /// Activation channels of one unit: `head_dim` for heads, those of all its queries for a
    /// key/value head, 1 elsewhere.
    pub block: usize,
    /// The units fall into this many runs of equal length, and as many stay in each (grouped
    /// queries). 1 elsewhere.
    pub n_parts: usize,
    /// What goes is one run of units, the one with the lowest sum of scores; else unit by unit.
    pub contiguous: bool,
}

impl PruneGroup {
    /// The groups of every dim of a kind, as the spec states them.
    pub fn of_kind(spec: &ModelSpec, kind: &str) -> Vec<PruneGroup> {
        let mut groups: Vec<PruneGroup> = spec
            .dims
            .values()
            .filter(|dim| split_dim(&dim.name).0 == kind)
            .map(|dim| PruneGroup {
                dim: dim.name.clone(),
                layer: split_dim(&dim.name).1,
                n_layers: spec.n_layers(),
                sites: spec.observed_at(&dim.name),
                n_units: dim.size,
                block: block_of(spec, &dim.name),
                n_parts: dim
                    .partition
                    .as_ref()
                    .and_then(|by| spec.dims.get(by))
                    .map_or(1, |by| by.size),
                contiguous: false,
            })
            .collect();
        groups.sort_by_key(|group| (group.layer, split_unit(&group.dim).2));
        groups
    }

    /// `mlp` of `mlp.3`.
    pub fn kind(&self) -> &str {
        split_dim(&self.dim).0
    }
}

/// A unit that carries units of another dim, as a key/value head its queries, is seen through
/// theirs.
fn block_of(spec: &ModelSpec, name: &str) -> usize {
    match spec.carried_by(name) {
        Some(carried) => {
            let n_units = spec.dims.get(name).map_or(1, |dim| dim.size.max(1));
            spec.unit_width(&carried.name).unwrap_or(1) * (carried.size / n_units)
        }
        None => spec.unit_width(name).unwrap_or(1),
    }
}
