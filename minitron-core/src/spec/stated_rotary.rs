//! How a student's config states the frequencies of the pairs that stay.

use serde_json::{Map, Value, json};

use super::{Rotary, RotaryScaling};
use crate::checkpoint::Config;

/// Keys of a rotation's object that belong to one kind of scaling.
const OF_SCALING: [&str; 16] = [
    "rope_type",
    "type",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "short_mscale",
    "long_mscale",
    "long_factor",
    "original_max_position_embeddings",
];

/// A rotation where the config states it. The frequencies of some of its pairs follow from no base,
/// so a student's config lists them, as longrope does: a divisor for each pair, the same up to the
/// original positions and beyond.
#[derive(Debug, Clone, PartialEq)]
pub struct StatedRotary {
    /// Path of the part of the config that describes the decoder: empty, or `text_config.`.
    pub scope: &'static str,
    /// Key of the object there.
    pub key: &'static str,
    /// The kind of layer, where that object has one for each: `sliding_attention`.
    pub layer_type: Option<&'static str>,
    /// What is stated.
    pub rotary: Rotary,
    /// Positions of the first training, where something else reads them too.
    pub original: Option<f64>,
    /// What else the object says.
    rest: Map<String, Value>,
}

impl StatedRotary {
    /// Of a decoder's config with the family's defaults.
    pub(crate) fn new(config: &Config, layer_type: Option<&'static str>, rotary: Rotary) -> Self {
        let filled = ["rope_scaling", "rope_parameters"].into_iter().find(|key| {
            let object = config.get(key).and_then(Value::as_object);
            object.is_some_and(|object| !object.is_empty())
        });
        let key = match filled {
            _ if layer_type.is_some() => "rope_parameters",
            Some(key) => key,
            // The older form keeps the base beside the object.
            None if config.get("rope_theta").is_some() => "rope_scaling",
            None => "rope_parameters",
        };
        let found = config
            .get(key)
            .and_then(|object| layer_type.map_or(Some(object), |kind| object.get(kind)));
        let mut rest = found
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        rest.retain(|key, value| !OF_SCALING.contains(&key.as_str()) && !value.is_object());
        StatedRotary {
            scope: "",
            key,
            layer_type,
            rotary,
            original: None,
            rest,
        }
    }

    /// Why no config states the frequencies of some pairs alone, where none does.
    pub(crate) fn obstacle(&self) -> Option<&'static str> {
        match self.rotary.scaling {
            RotaryScaling::Dynamic { .. } => Some(
                "its rotation (dynamic) changes with the length of a sequence, which no list of \
                 frequencies states",
            ),
            RotaryScaling::Unsupported { .. } => Some("its kind of rotation is not computed"),
            _ => None,
        }
    }

    /// Makes a config turn the kept pairs as before. `max_positions` is the longest sequence,
    /// `rest` the channels of a head that do not turn.
    pub fn state(&self, config: &mut Config, kept: &[usize], max_positions: usize, rest: usize) {
        let path = format!("{}{}", self.scope, self.key);
        let object = self.object(kept, max_positions, rest);
        match self.layer_type {
            None => config.set_at(&path, object),
            Some(kind) => {
                let mut all = config
                    .get_at(&path)
                    .and_then(Value::as_object)
                    .cloned()
                    .unwrap_or_default();
                // One set for all layers is not what this object holds.
                all.retain(|_, value| value.is_object());
                all.insert(kind.to_owned(), object.into());
                config.set_at(&path, all);
                // The older key goes first where both are there.
                config.remove_at(&format!("{}rope_scaling", self.scope));
            }
        }
    }

    fn object(&self, kept: &[usize], max_positions: usize, rest: usize) -> Map<String, Value> {
        let [short, long] = self.rotary.divisors_of(kept);
        let original = match self.rotary.scaling {
            RotaryScaling::Long {
                original_max_positions,
                ..
            } => original_max_positions,
            // Both lists are one: where the second begins decides nothing.
            _ => self.original.unwrap_or(max_positions as f64),
        };
        let mut object = self.rest.clone();
        object.insert("rope_type".to_owned(), "longrope".into());
        if self.key == "rope_parameters" {
            object.insert("rope_theta".to_owned(), self.rotary.theta.into());
        }
        object.insert("short_factor".to_owned(), short.into());
        object.insert("long_factor".to_owned(), long.into());
        object.insert("attention_factor".to_owned(), self.rotary.factor.into());
        object.insert(
            "original_max_position_embeddings".to_owned(),
            json!(original as u64),
        );
        // Decides nothing beside an attention factor; programs warn where it is left out.
        object.insert(
            "factor".to_owned(),
            (max_positions as f64 / original).max(1.0).into(),
        );
        if original < max_positions as f64 || self.rotary.factor != 1.0 {
            // vLLM reads the attention factor under these names.
            for key in ["short_mscale", "long_mscale"] {
                object.insert(key.to_owned(), self.rotary.factor.into());
            }
        }
        if let Some(share) = share(2 * kept.len(), rest) {
            object.insert("partial_rotary_factor".to_owned(), share.into());
        }
        object
    }
}

/// The share of a head's channels that turn, so that rounding down gives their number again; none
/// where all of them do.
fn share(n_rotated: usize, rest: usize) -> Option<f64> {
    let all = (n_rotated + rest) as f64;
    let share = n_rotated as f64 / all;
    let given = if (all * share) as usize == n_rotated {
        share
    } else {
        share.next_up()
    };
    (rest > 0).then_some(given)
}
