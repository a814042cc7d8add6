//! Parts of layers that are not there, and those that may go as a whole.

use std::collections::BTreeMap;

use super::{At, Dim, ModelSpec, Param, Sublayer};

/// The optional dims along the sides of each part's tensors.
pub(super) fn optional(
    params: &[Param],
    dims: &BTreeMap<String, Dim>,
) -> BTreeMap<At, Vec<String>> {
    let mut found: BTreeMap<At, Vec<String>> = BTreeMap::new();
    if !dims.values().any(|dim| dim.optional) {
        return found;
    }
    for param in params {
        for name in param.sides.iter().flat_map(|side| side.dims()) {
            if dims.get(name).is_some_and(|dim| dim.optional) {
                let names = found.entry(param.at.whole()).or_default();
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        }
    }
    found
}

impl ModelSpec {
    /// Every place of a layer, in order: those of parts that are not there keep their number.
    pub fn places(&self, layer: usize) -> impl Iterator<Item = (At, &Sublayer)> {
        let parts = self
            .layers
            .get(layer)
            .into_iter()
            .flat_map(|layer| layer.0.iter().enumerate());
        parts.map(move |(sublayer, part)| (At::Sublayer { layer, sublayer }, part))
    }

    /// Every part of a layer that is there, in order.
    pub fn sublayers(&self, layer: usize) -> impl Iterator<Item = (At, &Sublayer)> {
        self.places(layer)
            .filter(|(_, part)| !part.mixer.is_absent())
    }

    /// Whether another family has the same model in a form in which layers may differ.
    pub fn may_be_apart(&self) -> bool {
        let family = self.family.as_ref();
        family.is_some_and(|family| family.with_layers_apart(&self.config).is_some())
    }

    /// Whether a part of some layer is not there.
    pub fn has_absent(&self) -> bool {
        let mut parts = self.layers.iter().flat_map(|layer| &layer.0);
        parts.any(|part| part.mixer.is_absent())
    }

    /// Whether a part is gone at some sizes: no unit is left of a dim without which it may be.
    pub fn goes_at(&self, at: At, size_of: impl Fn(&str) -> Option<usize>) -> bool {
        let names = self.optional.get(&at.whole());
        names
            .into_iter()
            .flatten()
            .any(|name| size_of(name) == Some(0))
    }
}
