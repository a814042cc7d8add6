//! The decision: which units stay.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::space::Space;
use crate::blueprint::{Blueprint, Sizes, split_dim};
use crate::error::{Error, Result};

/// Kept units per dim, ascending, in the source's numbering. Every prunable dim is there, whole or not; the entry of a
/// layer that `depth` drops has no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For example `mlp.3`: `[0, 2, 5]`.
    pub kept: BTreeMap<String, Vec<usize>>,
}

impl Plan {
    /// Reads `plan.json`; keys besides `kept` are for people.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::Recipe(format!("{}: no such plan", path.display())),
            _ => Error::io(path, e),
        })?;
        serde_json::from_str(&text)
            .map_err(|e| Error::Recipe(format!("{}: expected {{\"kept\": {{dim: [units]}}}}: {e}", path.display())))
    }

    /// Size per kind.
    pub fn sizes(&self) -> Sizes {
        self.kept.iter().map(|(dim, kept)| (split_dim(dim).0.to_owned(), kept.len())).collect()
    }

    /// Completes a plan from elsewhere with whole dims, and checks it against a model.
    ///
    /// # Errors
    /// `Plan` for a unit out of range or order, widths that differ between layers, unequal parts, or an illegal size.
    pub fn checked(mut self, space: &Space, blueprint: &Blueprint) -> Result<Plan> {
        for (name, kept) in &self.kept {
            let dim = blueprint.dim(name)?;
            space.axis(split_dim(name).0)?;
            let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || kept.last().is_some_and(|&last| last >= dim.size) {
                let message = format!("`{name}`: expected units below {}, ascending, each once", dim.size);
                return Err(Error::Plan(message));
            }
            let n_parts = dim.partition.as_ref().and_then(|by| blueprint.dims.get(by)).map_or(1, |by| by.size);
            check_parts(name, kept, dim.size / n_parts.max(1), n_parts)?;
        }
        for dim in blueprint.dims.values() {
            if space.axis(split_dim(&dim.name).0).is_ok() {
                self.kept.entry(dim.name.clone()).or_insert_with(|| (0..dim.size).collect());
            }
        }
        let sizes = self.sizes();
        for (name, kept) in &self.kept {
            let common = sizes.get(split_dim(name).0).copied().unwrap_or(0);
            if kept.len() != common {
                let message = format!(
                    "`{name}` keeps {} units, another layer {common}; this family's config has one width for all layers",
                    kept.len()
                );
                return Err(Error::Plan(message));
            }
        }
        space.complete(&sizes)?;
        Ok(self)
    }
}

fn check_parts(name: &str, kept: &[usize], per_part: usize, n_parts: usize) -> Result<()> {
    let mut counts = vec![0usize; n_parts];
    for &unit in kept {
        if let Some(count) = counts.get_mut(unit / per_part.max(1)) {
            *count += 1;
        }
    }
    if counts.windows(2).any(|pair| pair[0] != pair[1]) {
        let message = format!("`{name}`: expected equally many query heads per key/value head, got {counts:?}");
        return Err(Error::Plan(message));
    }
    Ok(())
}
