//! A finished plan against the legal sizes of a model.

use super::saved::Plan;
use super::space::Space;
use crate::error::{Error, Result};
use crate::spec::ModelSpec;

impl Plan {
    /// Dims left out stay whole, query heads inside the key/value heads that stay.
    fn complete(&mut self, space: &Space, spec: &ModelSpec) -> Result<()> {
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
        self.check_alike(spec)?;
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
}
