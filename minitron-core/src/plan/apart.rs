//! Sizes of single layers, beside those of the others.

use super::space::Space;
use crate::error::{Error, Result};
use crate::spec::{HEADS, KV_HEADS, Sizes, dim_of_layer, split_dim};

impl Space {
    /// Query heads of layers with fewer key/value heads than others.
    pub(super) fn check_queries(&self, sizes: &Sizes) -> Result<()> {
        for name in sizes.keys() {
            let (KV_HEADS, Some(layer)) = split_dim(name) else {
                continue;
            };
            let queries = dim_of_layer(HEADS, layer);
            let size = sizes.get(&queries).or_else(|| sizes.get(HEADS));
            if let Some(&size) = size.filter(|_| self.optional.contains(&queries)) {
                self.check_size(&queries, size, sizes)?;
            }
        }
        Ok(())
    }

    /// A layer's own size of a kind for which the config has one number.
    pub(super) fn check_common(&self, name: &str, size: usize, beside: &Sizes) -> Result<()> {
        let is_own = self.find(name).is_some() || self.listed.iter().any(|dim| dim == name);
        let kind = split_dim(name).0;
        let common = match beside.get(kind) {
            Some(&common) => common,
            None => self.axis(name)?.full,
        };
        if is_own || size == common {
            return Ok(());
        }
        Err(Error::Plan(format!(
            "{name}: {size} is not legal beside {kind} {common}: the config has one number for all \
             layers that have some; give {common}, or 0 for none"
        )))
    }
}
