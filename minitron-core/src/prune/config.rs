//! The student's `config.json`: the teacher's with each dim's key replaced.

use crate::blueprint::{Blueprint, Dim, split_dim};
use crate::checkpoint::Config;
use crate::plan::Plan;

/// Keys that `transformers` keeps one entry per layer under.
const PER_LAYER_LISTS: &[&str] = &["layer_types"];

/// Where `transformers` notes what a model was loaded from; clients show it as the model's name.
pub const NAME: &str = "_name_or_path";

/// The config at the plan's sizes; everything else stays as it is, and all of it where every unit does.
pub fn student_config(blueprint: &Blueprint, plan: &Plan) -> Config {
    let mut config = blueprint.config.clone();
    let is_whole = |dim: &Dim| plan.kept.get(&dim.name).is_none_or(|kept| kept.len() == dim.size);
    if blueprint.dims.values().all(is_whole) {
        return config;
    }
    // It names the source, or what that one was made from.
    config.remove(NAME);
    for (key, value) in &blueprint.pinned {
        config.set(key, value.clone());
    }
    let sizes = plan.sizes();
    for dim in blueprint.dims.values() {
        if let Some(&size) = sizes.get(split_dim(&dim.name).0) {
            // A key that the source leaves to the family's default is added: the default may follow from another size.
            for key in &dim.config_keys {
                config.set(key, size);
            }
        }
    }
    for key in PER_LAYER_LISTS {
        if let Some(serde_json::Value::Array(list)) = config.get(key).cloned() {
            let layers = super::source_layers(blueprint, plan);
            let kept: Vec<_> = layers.iter().filter_map(|&layer_idx| list.get(layer_idx).cloned()).collect();
            config.set(key, kept);
        }
    }
    config
}
