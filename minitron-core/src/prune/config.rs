//! The student's `config.json`: the teacher's with each dim's key replaced.

use serde_json::Value;

use crate::checkpoint::Config;
use crate::plan::Plan;
use crate::spec::{ConfigKey, Dim, ModelSpec, ROPE_PAIRS, dim_of_layer, split_dim};

/// What `transformers` may keep for each layer of any family.
const LAYER_TYPES: &str = "layer_types";

/// Where `transformers` notes what a model was loaded from; clients show it as the model's name.
pub const NAME: &str = "_name_or_path";

/// The config at the plan's sizes; everything else stays as it is, and all of it where every unit
/// does.
pub fn student_config(spec: &ModelSpec, plan: &Plan) -> Config {
    let mut config = spec.config.clone();
    if spec.dims.values().all(|dim| is_whole(dim, plan)) {
        return config;
    }
    // It names the source, or what that one was made from.
    config.remove(NAME);
    for (key, value) in &spec.pinned {
        config.set_at(key, value.clone());
    }
    let layers = super::source_layers(spec, plan);
    state_sizes(&mut config, spec, plan, &layers);
    state_entries(&mut config, spec, plan, &layers);
    if let (Some(kept), Some(dim)) = (plan.kept.get(ROPE_PAIRS), spec.dims.get(ROPE_PAIRS))
        && kept.len() < dim.size
    {
        for stated in &spec.rotaries {
            stated.state(
                &mut config,
                kept,
                spec.options.max_positions,
                dim.stated_number(0),
            );
        }
    }
    let is_described = spec.pattern(LAYER_TYPES).is_some();
    if let Some(Value::Array(list)) = config.get(LAYER_TYPES).filter(|_| !is_described).cloned() {
        config.set(LAYER_TYPES, of_layers(&list, &layers));
    }
    config
}

/// Every dim under its keys.
fn state_sizes(config: &mut Config, spec: &ModelSpec, plan: &Plan, layers: &[usize]) {
    let is_shallower = layers.len() < spec.n_layers();
    for dim in spec.dims.values() {
        let size = plan.kept.get(&dim.name).map(Vec::len);
        for key in &dim.stated {
            match (key, size) {
                // Of a part that goes; the number is that of the other layers.
                (ConfigKey::Scalar { .. }, Some(0)) if dim.optional => {}
                // A key that the source leaves to the family's default is added: the default may
                // follow from another size.
                (ConfigKey::Scalar { path, .. }, Some(size)) => {
                    config.set_at(path, dim.stated_number(size))
                }
                (ConfigKey::PerLayer { path }, _) => {
                    config.set_at(path, listed(spec, plan, &dim.name, layers))
                }
                // A pattern that follows from a layer's index would be another one of the layers
                // that stay.
                (ConfigKey::Pattern { path, values, form }, _)
                    if is_shallower || config.get_at(path).is_some() =>
                {
                    config.set_at(path, form.written(of_layers(values, layers)));
                }
                _ => {}
            }
        }
    }
}

/// What the objects of layers say, in lists that are those of the layers that stay by now.
fn state_entries(config: &mut Config, spec: &ModelSpec, plan: &Plan, layers: &[usize]) {
    for (place, &layer) in layers.iter().enumerate() {
        let size_of = |kind: &str| size_in(spec, plan, (kind, layer));
        for dim in spec.dims.values() {
            if split_dim(&dim.name).1 != Some(layer) {
                continue;
            }
            let size = n_kept(plan, dim);
            for key in &dim.stated {
                if let ConfigKey::Entry { path, inside, form } = key
                    && let Some(Value::Array(list)) = config.get_at_mut(path)
                    && let Some(entry) = list.get_mut(place)
                {
                    put(entry, inside, form.written(size, &size_of));
                }
            }
        }
    }
}

/// Puts a value under a path inside an object, or takes what is there out.
fn put(entry: &mut Value, inside: &str, value: Option<Value>) {
    let (mut at, mut rest) = (entry, inside);
    while let Some((outer, inner)) = rest.split_once('.') {
        let Some(next) = at.get_mut(outer) else {
            return;
        };
        (at, rest) = (next, inner);
    }
    let Some(object) = at.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => _ = object.insert(rest.to_owned(), value),
        None => _ = object.shift_remove(rest),
    }
}

/// The student's size of a kind in a layer; 0 where there is none.
fn size_in(spec: &ModelSpec, plan: &Plan, (kind, layer): (&str, usize)) -> usize {
    let of_layer = spec.dims.get(&dim_of_layer(kind, layer));
    let found = of_layer.or_else(|| spec.dims.get(kind));
    found.map_or(0, |dim| n_kept(plan, dim))
}

fn n_kept(plan: &Plan, dim: &Dim) -> usize {
    plan.kept.get(&dim.name).map_or(dim.size, Vec::len)
}

fn is_whole(dim: &Dim, plan: &Plan) -> bool {
    n_kept(plan, dim) == dim.size
}

/// The sizes of a kind in the layers that stay; 0 in one that has no such dim.
fn listed(spec: &ModelSpec, plan: &Plan, name: &str, layers: &[usize]) -> Vec<usize> {
    let kind = split_dim(name).0;
    let sizes = layers
        .iter()
        .map(|&layer| size_in(spec, plan, (kind, layer)));
    sizes.collect()
}

fn of_layers(values: &[Value], layers: &[usize]) -> Vec<Value> {
    layers
        .iter()
        .filter_map(|&layer_idx| values.get(layer_idx).cloned())
        .collect()
}
