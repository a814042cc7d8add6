//! Which smaller parts a layer may have.

use std::collections::BTreeSet;

use minitron_core::plan::{BlockChoice, BlockChoices, Space};
use minitron_core::spec::{DEPTH, ModelSpec, Sizes, Sublayer, dim_of_layer};

/// Those of one part of a layer.
pub(super) struct LayerPart {
    /// Place of the sublayer in the layer; none: the whole layer.
    pub number: Option<usize>,
    pub block: BlockChoices,
}

/// Widths that differ from layer to layer where the family's config can say so, parts left out
/// where it can say that, else layers left out.
pub(super) fn choices(
    spec: &ModelSpec,
    space: &Space,
    layer: usize,
    shares: &[f64],
) -> Vec<LayerPart> {
    let mut parts = Vec::new();
    for (number, (_, part)) in spec.places(layer).enumerate() {
        let dims = dims_of(spec, space, part, layer);
        let mut choices = widths(space, &dims, shares);
        if shares.contains(&0.0) {
            choices.extend(absent(spec, &dims));
        }
        if !choices.is_empty() {
            let block = block(layer, part.mixer.name(), choices);
            let number = Some(number);
            parts.push(LayerPart { number, block });
        }
    }
    let may_go = space.axis(DEPTH).is_ok_and(|axis| axis.held.is_none());
    let is_fixed = spec.fixed_layers.iter().any(|(fixed, _)| *fixed == layer);
    if parts.is_empty() && may_go && !is_fixed && shares.contains(&0.0) {
        let block = block(layer, "layer", vec![BlockChoice::default()]);
        let number = None;
        parts.push(LayerPart { number, block });
    }
    parts
}

fn block(layer: usize, part: &str, choices: Vec<BlockChoice>) -> BlockChoices {
    BlockChoices {
        layer,
        part: part.to_owned(),
        ms: None,
        choices,
    }
}

/// Dims of a part that have legal sizes.
fn dims_of(spec: &ModelSpec, space: &Space, part: &Sublayer, layer: usize) -> Vec<String> {
    let observed = part.mixer.observed();
    let kinds: BTreeSet<&str> = observed.iter().map(|observed| observed.kind).collect();
    let names = kinds.into_iter().map(|kind| dim_of_layer(kind, layer));
    names
        .filter(|name| spec.dims.contains_key(name) && space.axis_of(name).is_ok())
        .collect()
}

/// Sizes near the shares, largest first, of a part with one dim that may differ.
fn widths(space: &Space, dims: &[String], shares: &[f64]) -> Vec<BlockChoice> {
    let [name] = dims else { return Vec::new() };
    let Ok(axis) = space.axis(name) else {
        return Vec::new();
    };
    let mut sizes = BTreeSet::new();
    for share in shares.iter().filter(|share| **share > 0.0) {
        let wanted = (share * axis.full as f64).round() as usize;
        let near = axis.nearest(wanted).into_iter();
        sizes.extend(near.min_by_key(|size| size.abs_diff(wanted)));
    }
    sizes.remove(&axis.full);
    let sizes = sizes.into_iter().rev();
    sizes
        .map(|size| chosen([(name.clone(), size)].into()))
        .collect()
}

/// The part left out.
fn absent(spec: &ModelSpec, dims: &[String]) -> Option<BlockChoice> {
    let is_optional = |name: &String| spec.dims.get(name).is_some_and(|dim| dim.optional);
    let all = dims.iter().all(is_optional);
    (all && !dims.is_empty()).then(|| chosen(dims.iter().map(|name| (name.clone(), 0)).collect()))
}

fn chosen(sizes: Sizes) -> BlockChoice {
    BlockChoice {
        sizes,
        ..BlockChoice::default()
    }
}
