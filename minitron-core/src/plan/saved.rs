//! The decision: which units stay.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Identity;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::spec::{DEPTH, Dim, ModelSpec, SizeMap, Sizes, by_kind};

/// Kept units per dim, ascending, in the source's numbering. Every prunable dim is there, whole or
/// not; the entry of a layer that `depth` drops has no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For example `mlp.3`: `[0, 2, 5]`.
    pub kept: BTreeMap<String, Vec<usize>>,
}

impl Plan {
    /// Reads `plan.json`; other keys than `kept` decide nothing.
    pub fn load(path: &Path) -> Result<Self> {
        Ok(Self::load_with_source(path)?.0)
    }

    /// The same with the model that the plan is of; files of earlier versions, and those that
    /// people write, may not say.
    pub fn load_with_source(path: &Path) -> Result<(Self, Option<Identity>)> {
        let text = read_text(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Recipe(format!("{}: no such plan", path.display()))
            }
            _ => Error::io(path, e),
        })?;
        let plan = serde_json::from_str(&text).map_err(|e| {
            let path = path.display();
            Error::Recipe(format!(
                "{path}: expected {{\"kept\": {{dim: [units]}}}}: {e}"
            ))
        })?;
        Ok((plan, serde_json::from_str(&text).ok()))
    }

    /// Size per kind, or per dim where layers keep unequally many.
    pub fn sizes(&self) -> Sizes {
        by_kind(
            self.kept
                .iter()
                .map(|(dim, kept)| (dim.as_str(), kept.len())),
        )
    }

    /// The same for each dim, with the layers that stay.
    pub fn size_map(&self, spec: &ModelSpec) -> SizeMap {
        let by_name = self
            .kept
            .iter()
            .map(|(dim, kept)| (dim.clone(), kept.len()))
            .collect();
        let layers = self
            .kept
            .get(DEPTH)
            .cloned()
            .unwrap_or_else(|| (0..spec.n_layers()).collect());
        SizeMap {
            by_name,
            layers: Some(layers),
        }
    }

    /// The runs of a dim's units that stay as a whole or in part; one run where no other dim
    /// partitions it.
    pub(super) fn parts_of(&self, dim: &Dim, spec: &ModelSpec) -> Parts {
        let by = dim.partition.as_ref().and_then(|by| spec.dims.get(by));
        let n_parts = by.map_or(1, |by| by.size.max(1));
        let kept = by.and_then(|by| self.kept.get(&by.name)).cloned();
        Parts {
            kept: kept.unwrap_or_else(|| (0..n_parts).collect()),
            per_part: dim.size / n_parts,
        }
    }
}

/// The runs of a dim's units that another dim's kept units leave: the query heads of each key/value
/// head.
#[derive(Debug)]
pub(super) struct Parts {
    /// Runs that stay.
    pub kept: Vec<usize>,
    /// Units of each.
    pub per_part: usize,
}

impl Parts {
    /// All units of the runs that stay.
    pub fn units(&self) -> Vec<usize> {
        self.kept
            .iter()
            .flat_map(|part| part * self.per_part..(part + 1) * self.per_part)
            .collect()
    }

    pub(super) fn check(&self, name: &str, kept: &[usize]) -> Result<()> {
        let of_unit: Vec<usize> = kept
            .iter()
            .map(|unit| unit / self.per_part.max(1))
            .collect();
        let stray = of_unit.iter().position(|part| !self.kept.contains(part));
        if let Some(unit) = stray.and_then(|place| kept.get(place)) {
            let parts = &self.kept;
            let message = format!(
                "`{name}`: unit {unit} belongs to none of the key/value heads that stay ({parts:?})"
            );
            return Err(Error::Plan(message));
        }
        let counts: Vec<usize> = self
            .kept
            .iter()
            .map(|own| of_unit.iter().filter(|&part| part == own).count())
            .collect();
        if counts.windows(2).any(|pair| pair[0] != pair[1]) {
            let message = format!(
                "`{name}`: expected equally many query heads per key/value head, got {counts:?}"
            );
            return Err(Error::Plan(message));
        }
        Ok(())
    }
}
