//! The student's `config.json`: the teacher's with each dim's key replaced.

use crate::checkpoint::Config;
use crate::plan::Plan;
use crate::spec::{Dim, ModelSpec, ROPE_PAIRS, split_dim};

/// What `transformers` may keep for each layer of any family.
const LAYER_TYPES: &str = "layer_types";

/// Where `transformers` notes what a model was loaded from; clients show it as the model's name.
pub const NAME: &str = "_name_or_path";

/// The config at the plan's sizes; everything else stays as it is, and all of it where every unit does.
pub fn student_config(spec: &ModelSpec, plan: &Plan) -> Config {
    let mut config = spec.config.clone();
    let is_whole = |dim: &Dim| plan.kept.get(&dim.name).is_none_or(|kept| kept.len() == dim.size);
    if spec.dims.values().all(is_whole) {
        return config;
    }
    // It names the source, or what that one was made from.
    config.remove(NAME);
    for (key, value) in &spec.pinned {
        config.set_at(key, value.clone());
    }
    let sizes = plan.sizes();
    for dim in spec.dims.values() {
        if let Some(&size) = sizes.get(split_dim(&dim.name).0) {
            // A key that the source leaves to the family's default is added: the default may follow from another size.
            for key in &dim.config_keys {
                config.set_at(key, dim.stated.of(size));
            }
        }
    }
    if let (Some(kept), Some(dim)) = (plan.kept.get(ROPE_PAIRS), spec.dims.get(ROPE_PAIRS))
        && kept.len() < dim.size
    {
        for stated in &spec.rotaries {
            stated.state(&mut config, kept, spec.options.max_positions, dim.stated.plus);
        }
    }
    let layers = super::source_layers(spec, plan);
    let is_shallower = layers.len() < spec.n_layers();
    // A pattern that follows from a layer's index would be another one of the layers that stay: it is written out.
    for list in &spec.layer_lists {
        if is_shallower || config.get_at(&list.key).is_some() {
            config.set_at(&list.key, of_layers(&list.values, &layers));
        }
    }
    let is_described = spec.layer_lists.iter().any(|list| list.key == LAYER_TYPES);
    if let Some(serde_json::Value::Array(list)) = config.get(LAYER_TYPES).filter(|_| !is_described).cloned() {
        config.set(LAYER_TYPES, of_layers(&list, &layers));
    }
    config
}

fn of_layers(values: &[serde_json::Value], layers: &[usize]) -> Vec<serde_json::Value> {
    layers.iter().filter_map(|&layer_idx| values.get(layer_idx).cloned()).collect()
}
