//! How a config states the rotary position embedding.

use super::{Rotary, RotaryScaling, Shape};
use crate::checkpoint::Config;
use crate::error::Result;

/// Positions of the first training.
const ORIGINAL: &str = "original_max_position_embeddings";

impl Rotary {
    /// Rotary options, stated as `rope_parameters`, or in the older way as `rope_theta` and `rope_scaling`.
    ///
    /// The older key goes first where both are there, as in `transformers`. `partial` is the share of a head's channels that
    /// turns where the config does not say.
    ///
    /// A kind of scaling that is not known is kept as such: only what turns queries and keys needs it.
    ///
    /// # Errors
    /// `Checkpoint` for numbers that do not go together.
    pub fn read(config: &Config, shape: &Shape, partial: f64) -> Result<Self> {
        let (place, nested) =
            match config.nested("rope_scaling")?.filter(|nested| nested.to_value() != serde_json::json!({})) {
                Some(nested) => ("rope_scaling", Some(nested)),
                None => ("rope_parameters", config.nested("rope_parameters")?),
            };
        let number = |key: &str, default: Option<f64>| -> Result<f64> {
            let source = nested.as_ref().filter(|nested| nested.get(key).is_some()).unwrap_or(config);
            let value = source.number_or(key, default.unwrap_or(f64::NAN))?;
            if value > 0.0 {
                return Ok(value);
            }
            let got = if value.is_nan() { "nothing".to_owned() } else { value.to_string() };
            Err(config.error(format!("`{place}.{key}`: expected a number above 0, got {got}; correct config.json")))
        };
        if let Some(why) = nested.as_ref().and_then(|nested| by_kind_of_layer(place, nested)) {
            let n_rotated = n_rotated(config, shape, partial)?;
            return Ok(Rotary { theta: 10_000.0, n_rotated, scaling: RotaryScaling::Unsupported { why } });
        }
        let kind = match &nested {
            Some(nested) => nested.word_or("rope_type", nested.word_or("type", "default")?)?,
            None => "default",
        };
        let scaling = match kind {
            "default" => RotaryScaling::None,
            "dynamic" => RotaryScaling::Dynamic,
            "linear" => RotaryScaling::Linear { factor: number("factor", None)? },
            "llama3" => {
                let (low, high) = (number("low_freq_factor", None)?, number("high_freq_factor", None)?);
                if high <= low {
                    let message =
                        format!("`{place}`: expected `high_freq_factor` above `low_freq_factor`, got {high} and {low}");
                    return Err(config.error(message));
                }
                RotaryScaling::Llama3 {
                    factor: number("factor", None)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_positions: match config.get(ORIGINAL) {
                        // Beside the parameters it goes first, as in `transformers`.
                        Some(_) => config.number_or(ORIGINAL, f64::NAN)?,
                        None => number(ORIGINAL, Some(shape.max_positions as f64))?,
                    },
                }
            }
            other => unsupported(place, other),
        };
        let partial = number("partial_rotary_factor", Some(partial))?;
        let n_rotated = n_rotated(config, shape, partial)?;
        Ok(Rotary { theta: number("rope_theta", Some(10_000.0))?, n_rotated, scaling })
    }
}

/// Of a kind of scaling whose angles are not computed.
fn unsupported(place: &str, kind: &str) -> RotaryScaling {
    let later = match kind {
        "yarn" | "longrope" | "su" => " (it is planned)",
        _ => "",
    };
    let kind: String = kind.chars().take(40).collect();
    let why = format!(
        "`{place}`: the angles of rope type `{kind}` are not computed{later}; computed: default, linear, llama3, dynamic \
         within the model's positions. Pruning by given scores and inspecting need no angles; a model that was trained \
         without scaling is read by taking `{place}` out"
    );
    RotaryScaling::Unsupported { why }
}

/// Why parameters for each kind of layer are not read: the families here have one kind.
fn by_kind_of_layer(place: &str, nested: &Config) -> Option<String> {
    let object = nested.to_value();
    let (kind, _) = object.as_object()?.iter().find(|(_, value)| value.is_object())?;
    let kind: String = kind.chars().take(40).collect();
    Some(format!(
        "`{place}.{kind}`: expected one set of parameters for all layers, got one for each kind of layer; angles of \
         several kinds are not computed, what turns nothing works"
    ))
}

/// Channels of a head that turn.
fn n_rotated(config: &Config, shape: &Shape, partial: f64) -> Result<usize> {
    let n_rotated = (shape.head_dim as f64 * partial) as usize;
    if partial > 1.0 || n_rotated == 0 || !n_rotated.is_multiple_of(2) {
        return Err(config.error(format!(
            "the rotary embedding turns {n_rotated} of {} channels of a head (`head_dim` x `partial_rotary_factor`); \
             expected an even number from 2 to all of them",
            shape.head_dim
        )));
    }
    Ok(n_rotated)
}
