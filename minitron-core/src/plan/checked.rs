//! A finished plan against the legal sizes of a model.

use std::collections::BTreeMap;

use super::absent::way_out;
use super::saved::Plan;
use super::space::Space;
use crate::error::{Error, Result};
use crate::spec::{ModelSpec, split_dim};

impl Plan {
    /// Dims left out stay whole, query heads inside the key/value heads that stay.
    fn complete(&mut self, space: &Space, spec: &ModelSpec) -> Result<()> {
        self.complete_absent(spec)?;
        for dim in spec
            .dims
            .values()
            .filter(|dim| space.axis_of(&dim.name).is_ok())
        {
            let parts = self.parts_of(dim, spec);
            let kept = self
                .kept
                .entry(dim.name.clone())
                .or_insert_with(|| parts.units());
            parts.check(&dim.name, kept)?;
        }
        Ok(())
    }

    /// Completes a plan from elsewhere with whole dims, and checks it against a model.
    ///
    /// # Errors
    /// `Plan` for a unit out of range or order, widths that differ between layers, unequal parts,
    /// or an illegal size.
    pub fn checked(mut self, space: &Space, spec: &ModelSpec) -> Result<Plan> {
        for (name, kept) in &self.kept {
            let dim = spec.dim(name)?;
            space.axis_of(name)?;
            let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || kept.last().is_some_and(|&last| last >= dim.size) {
                let message = format!(
                    "`{name}`: expected units below {}, ascending, each once",
                    dim.size
                );
                return Err(Error::Plan(message));
            }
        }
        self.complete(space, spec)?;
        self.check_alike(space, spec)?;
        space.complete(&self.sizes())?;
        let layers = self.size_map(spec).layers.unwrap_or_default();
        if let Some((layer, why)) = spec
            .fixed_layers
            .iter()
            .find(|(layer, _)| !layers.contains(layer))
        {
            return Err(Error::Plan(format!(
                "`depth`: layer {layer} has to stay: {why}; drop another one"
            )));
        }
        Ok(self)
    }

    /// Layers keep equally many units, unless the family's config lists sizes by layer; those of
    /// which a part goes do not count.
    fn check_alike(&self, space: &Space, spec: &ModelSpec) -> Result<()> {
        let mut first: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
        for (name, kept) in &self.kept {
            let (kind, dim) = (split_dim(name).0, spec.dim(name)?);
            if spec.may_differ(kind) || kept.is_empty() && dim.optional {
                continue;
            }
            let (of_first, common) = *first.entry(kind).or_insert((name, kept.len()));
            if kept.len() != common {
                let keys = dim.stated.iter().map(|key| format!("`{}`", key.path()));
                let keys: Vec<String> = keys.collect();
                return Err(Error::Plan(format!(
                    "`{name}` keeps {} units, `{of_first}` {common}; this family's config has one \
                     number for all layers ({}){}; nearest: {}",
                    kept.len(),
                    keys.join(", "),
                    way_out(spec.may_be_apart()),
                    space.axis_of(name)?.advice(self.average(kind))
                )));
            }
        }
        Ok(())
    }

    /// Units that layers keep of a kind, on average.
    fn average(&self, kind: &str) -> usize {
        let of_kind = self
            .kept
            .iter()
            .filter(|(name, _)| split_dim(name).0 == kind);
        let (n, total) = of_kind.fold((0, 0), |(n, total), (_, kept)| (n + 1, total + kept.len()));
        total / n.max(1)
    }
}
