//! How a config states the rotary position embedding.

use super::{Rotary, RotaryScaling, Shape};
use crate::checkpoint::Config;
use crate::error::Result;

/// Positions of the first training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// What a family takes where its config says nothing.
#[derive(Debug, Clone, Copy)]
pub struct RotaryDefaults {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Share of a head's channels that turns.
    pub partial: f64,
    /// Key under which older configs state the base.
    pub theta_key: &'static str,
    /// Whether the family turns a part of a head's channels where the config says so.
    pub reads_partial: bool,
    /// Whether a base beside the parameters is meant for other layers.
    pub own_theta: bool,
}

impl Default for RotaryDefaults {
    fn default() -> Self {
        RotaryDefaults {
            theta: 10_000.0,
            partial: 1.0,
            theta_key: "rope_theta",
            reads_partial: false,
            own_theta: false,
        }
    }
}

/// The object that states one rotation, and where it stands.
struct Stated<'a> {
    config: &'a Config,
    place: String,
    nested: Option<Config>,
    shape: &'a Shape,
    defaults: RotaryDefaults,
}

impl Rotary {
    /// The longest sequence: all positions, and as many times those as the base grows with the
    /// length.
    pub fn longest(&self, max_positions: usize) -> usize {
        match self.scaling {
            RotaryScaling::Dynamic { factor, .. } if factor > 1.0 => {
                (max_positions as f64 * factor) as usize
            }
            _ => max_positions,
        }
    }

    /// Rotary options, stated as `rope_parameters`, or in the older way as `rope_theta` and
    /// `rope_scaling`.
    ///
    /// The older key goes first where both are there, as in `transformers`. A kind of scaling that
    /// is not known is kept as such: only what turns queries and keys needs it.
    ///
    /// # Errors
    /// `Checkpoint` for numbers that do not go together.
    pub fn read(config: &Config, shape: &Shape, defaults: RotaryDefaults) -> Result<Self> {
        let (place, nested) = parameters(config)?;
        if let Some(why) = nested
            .as_ref()
            .and_then(|nested| by_kind_of_layer(place, nested))
        {
            let n_rotated = n_rotated(config, shape, defaults.partial)?;
            let scaling = RotaryScaling::Unsupported { why };
            return Ok(Rotary {
                theta: defaults.theta,
                n_rotated,
                scaling,
                factor: 1.0,
            });
        }
        Stated {
            config,
            place: place.to_owned(),
            nested,
            shape,
            defaults,
        }
        .rotary()
    }

    /// The same of one kind of layer, such as `sliding_attention`, where `rope_parameters` has an
    /// object for each kind; `scaled` says whether parameters for all layers are for this kind too.
    ///
    /// # Errors
    /// `Checkpoint` for numbers that do not go together.
    pub fn of_layer_type(
        config: &Config,
        shape: &Shape,
        layer_type: &str,
        scaled: bool,
        defaults: RotaryDefaults,
    ) -> Result<Self> {
        let (place, nested) = parameters(config)?;
        let by_type = nested
            .as_ref()
            .is_some_and(|nested| by_kind_of_layer(place, nested).is_some());
        let (place, nested) = match nested {
            Some(nested) if by_type => {
                (format!("{place}.{layer_type}"), nested.nested(layer_type)?)
            }
            nested => (place.to_owned(), nested.filter(|_| scaled)),
        };
        Stated {
            config,
            place,
            nested,
            shape,
            defaults,
        }
        .rotary()
    }
}

/// The object with the parameters, and its key.
fn parameters(config: &Config) -> Result<(&'static str, Option<Config>)> {
    let older = config
        .nested("rope_scaling")?
        .filter(|nested| nested.to_value() != serde_json::json!({}));
    match older {
        Some(nested) => Ok(("rope_scaling", Some(nested))),
        None => Ok(("rope_parameters", config.nested("rope_parameters")?)),
    }
}

impl Stated<'_> {
    fn rotary(&self) -> Result<Rotary> {
        let n_rotated = n_rotated(
            self.config,
            self.shape,
            self.number("partial_rotary_factor", Some(self.defaults.partial))?,
        )?;
        let (scaling, factor) = self.scaling(n_rotated)?;
        Ok(Rotary {
            theta: self.theta()?,
            n_rotated,
            scaling,
            factor,
        })
    }

    /// Of the parameters, or beside them under the older key or the usual one, or the family's.
    fn theta(&self) -> Result<f64> {
        let RotaryDefaults {
            theta,
            theta_key,
            own_theta,
            ..
        } = self.defaults;
        let usual = "rope_theta";
        if self.has(usual) || theta_key == usual {
            return self.number(usual, Some(theta));
        }
        match self.config.get(theta_key) {
            None if own_theta => Ok(theta),
            None => self.number(usual, Some(theta)),
            Some(_) => self.number(theta_key, None),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.nested
            .as_ref()
            .is_some_and(|nested| nested.get(key).is_some())
    }

    /// A number above 0, of the object itself or beside it.
    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let source = self
            .nested
            .as_ref()
            .filter(|_| self.has(key))
            .unwrap_or(self.config);
        let value = source.number_or(key, default.unwrap_or(f64::NAN))?;
        if value > 0.0 && value.is_finite() {
            return Ok(value);
        }
        let got = if value.is_nan() {
            "nothing".to_owned()
        } else {
            value.to_string()
        };
        let place = &self.place;
        Err(self.config.error(format!(
            "`{place}.{key}`: expected a number above 0, got {got}; correct config.json"
        )))
    }

    fn number_opt(&self, key: &str) -> Result<Option<f64>> {
        if self.has(key) {
            self.number(key, None).map(Some)
        } else {
            Ok(None)
        }
    }

    fn scaling(&self, n_rotated: usize) -> Result<(RotaryScaling, f64)> {
        let kind = match &self.nested {
            Some(nested) => nested.word_or("rope_type", nested.word_or("type", "default")?)?,
            None => "default",
        };
        match kind {
            "default" => Ok((RotaryScaling::None, 1.0)),
            "linear" => Ok((
                RotaryScaling::Linear {
                    factor: self.number("factor", None)?,
                },
                1.0,
            )),
            "dynamic" => {
                let factor = self.number("factor", None)?;
                let max = self.shape.max_positions as f64;
                Ok((
                    RotaryScaling::Dynamic {
                        factor,
                        original_max_positions: max,
                    },
                    1.0,
                ))
            }
            "llama3" => Ok((self.llama3()?, 1.0)),
            "yarn" => self.yarn(),
            "longrope" | "su" => self.long(n_rotated),
            other => Ok((unsupported(&self.place, other), 1.0)),
        }
    }

    /// Beside the parameters it goes first, as in `transformers`.
    fn original(&self) -> Result<f64> {
        match self.config.get(ORIGINAL) {
            Some(_) => self.config.number_or(ORIGINAL, f64::NAN),
            None => self.number(ORIGINAL, Some(self.shape.max_positions as f64)),
        }
    }

    fn llama3(&self) -> Result<RotaryScaling> {
        let low = self.number("low_freq_factor", None)?;
        let high = self.number("high_freq_factor", None)?;
        if high <= low {
            let place = &self.place;
            let message = format!(
                "`{place}`: expected `high_freq_factor` above `low_freq_factor`, got {high} and \
                 {low}"
            );
            return Err(self.config.error(message));
        }
        Ok(RotaryScaling::Llama3 {
            factor: self.number("factor", None)?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: self.original()?,
        })
    }

    fn yarn(&self) -> Result<(RotaryScaling, f64)> {
        let original_max_positions = self.original()?;
        let stretch = self.shape.max_positions as f64 / original_max_positions;
        let factor = self.number_opt("factor")?.unwrap_or(stretch);
        let own = match (self.zero_or("mscale")?, self.zero_or("mscale_all_dim")?) {
            (scale, all) if scale != 0.0 && all != 0.0 => {
                log_growth(factor, scale) / log_growth(factor, all)
            }
            _ => log_growth(factor, 1.0),
        };
        let nested = self.nested.as_ref().unwrap_or(self.config);
        let scaling = RotaryScaling::Yarn {
            factor,
            beta_fast: self.number_opt("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number_opt("beta_slow")?.unwrap_or(1.0),
            original_max_positions,
            truncate: nested.flag_or("truncate", true)?,
        };
        Ok((scaling, self.number_opt("attention_factor")?.unwrap_or(own)))
    }

    /// A number that may be zero, which is as good as absent.
    fn zero_or(&self, key: &str) -> Result<f64> {
        self.nested
            .as_ref()
            .map_or(Ok(0.0), |nested| nested.number_or(key, 0.0))
    }

    fn long(&self, n_rotated: usize) -> Result<(RotaryScaling, f64)> {
        let original_max_positions = self.original()?;
        let stretch = self.shape.max_positions as f64 / original_max_positions;
        let factor = self.number_opt("factor")?.unwrap_or(stretch);
        let own = match factor > 1.0 {
            true => (1.0 + factor.ln() / original_max_positions.ln()).sqrt(),
            false => 1.0,
        };
        let short = self.divisors("short_factor", n_rotated)?;
        let long = self.divisors("long_factor", n_rotated)?;
        let scaling = RotaryScaling::Long {
            short,
            long,
            original_max_positions,
        };
        Ok((scaling, self.number_opt("attention_factor")?.unwrap_or(own)))
    }

    /// A list of one number for each pair of channels.
    fn divisors(&self, key: &str, n_rotated: usize) -> Result<Vec<f64>> {
        let list = self
            .nested
            .as_ref()
            .and_then(|nested| nested.get(key))
            .and_then(|value| value.as_array());
        let numbers: Vec<f64> = list
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_f64)
            .collect();
        if 2 * numbers.len() == n_rotated && numbers.iter().all(|&number| number > 0.0) {
            return Ok(numbers);
        }
        Err(self.config.error(format!(
            "`{}.{key}`: expected {} numbers above 0, one for two channels of a head that turn, \
             got {}; correct config.json",
            self.place,
            n_rotated / 2,
            numbers.len()
        )))
    }
}

/// By how much yarn multiplies what turns, for a factor and a scale of its logarithm.
fn log_growth(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * scale * factor.ln() + 1.0
    }
}

/// Of a kind of scaling whose angles are not computed.
fn unsupported(place: &str, kind: &str) -> RotaryScaling {
    let kind: String = kind.chars().take(40).collect();
    let why = format!(
        "`{place}`: the angles of rope type `{kind}` are not computed; computed: default, linear, \
         dynamic, llama3, yarn, longrope. Pruning by given scores and inspecting need no angles; a \
         model that was trained without scaling is read by taking `{place}` out"
    );
    RotaryScaling::Unsupported { why }
}

/// Why parameters for each kind of layer are not read, in families with one kind.
fn by_kind_of_layer(place: &str, nested: &Config) -> Option<String> {
    let object = nested.to_value();
    let (kind, _) = object
        .as_object()?
        .iter()
        .find(|(_, value)| value.is_object())?;
    let kind: String = kind.chars().take(40).collect();
    Some(format!(
        "`{place}.{kind}`: expected one set of parameters for all layers, got one for each kind of \
         layer; angles of several kinds are not computed for this family, what turns nothing works"
    ))
}

/// Channels of a head that turn.
fn n_rotated(config: &Config, shape: &Shape, partial: f64) -> Result<usize> {
    let n_rotated = (shape.head_dim as f64 * partial) as usize;
    if partial > 1.0 || n_rotated == 0 || !n_rotated.is_multiple_of(2) {
        return Err(config.error(format!(
            "the rotary embedding turns {n_rotated} of {} channels of a head (`head_dim` x \
             `partial_rotary_factor`); expected an even number from 2 to all of them",
            shape.head_dim
        )));
    }
    Ok(n_rotated)
}
