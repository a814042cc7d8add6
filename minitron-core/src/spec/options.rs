//! How a model computes, as data.

use serde::{Deserialize, Serialize};

use super::layer::{Embedding, Head, Norm};
use crate::checkpoint::Config;
use crate::error::{Error, Result};

/// Non-linearity of an MLP, by its names in `transformers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// x · sigmoid(x)
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// x · Φ(x)
    #[serde(rename = "gelu")]
    Gelu,
    /// The tanh approximation of gelu.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// max(x, 0)
    #[serde(rename = "relu")]
    Relu,
    /// max(x, 0)²
    #[serde(rename = "relu2")]
    Relu2,
    /// None of these: whatever computes nothing works, the rest is refused.
    #[serde(skip)]
    Unknown,
}

impl Activation {
    /// Reads a config's word for it.
    ///
    /// # Errors
    /// `Recipe` listing the known ones.
    pub fn parse(word: &str) -> Result<Self> {
        serde_json::from_value(serde_json::Value::from(word))
            .map_err(|_| Error::unknown("activation function", word, ["silu", "gelu", "gelu_new", "relu", "relu2"]))
    }

    /// Reads the word under a config's key; an unknown one is kept as such, for what runs the model to refuse.
    ///
    /// # Errors
    /// `Checkpoint` where it is no word.
    pub fn read(config: &Config, key: &str, default: &str) -> Result<Self> {
        Ok(Activation::parse(config.word_or(key, default)?).unwrap_or(Activation::Unknown))
    }

    /// Why it cannot be computed, where that is so.
    pub fn obstacle(self) -> Option<String> {
        (self == Activation::Unknown).then(|| "an activation function that is not known".to_owned())
    }

    /// Refuses a config's words for functions that are not known.
    ///
    /// # Errors
    /// `Checkpoint` with the config's word for it: the blame lies with the config, not with a recipe.
    pub(super) fn check_words(config: &Config) -> Result<()> {
        let entries = config.to_value();
        let words = entries.as_object().into_iter().flatten().filter_map(|(key, word)| Some((key, word.as_str()?)));
        for (key, word) in words.filter(|(key, _)| key.contains("activ") || key.ends_with("_act")) {
            if let Err(Error::Recipe(message)) = Activation::parse(word) {
                return Err(config.error(format!("`{key}`: {message}")));
            }
        }
        Ok(())
    }
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) · g
    Rms,
    /// RMS norm whose stored gain is g − 1 (Gemma).
    Rms1p,
    /// (x − mean) / std · g + b
    Layer,
    /// Layer norm whose stored gain is g − 1 (Nemotron).
    Layer1p,
}

impl NormKind {
    /// Whether a gain of 1 is stored as 0.
    pub fn stores_gain_less_one(self) -> bool {
        matches!(self, NormKind::Rms1p | NormKind::Layer1p)
    }

    /// Whether it divides by the root of the mean square alone.
    pub fn is_rms(self) -> bool {
        matches!(self, NormKind::Rms | NormKind::Rms1p)
    }
}

/// Rotary position embedding in the half-split form.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the wavelengths.
    pub theta: f64,
    /// The first `n_rotated` of each head's channels turn, the rest pass.
    pub n_rotated: usize,
    /// Change of the wavelengths for long contexts.
    pub scaling: RotaryScaling,
    /// Factor of the rotated channels (yarn's and longrope's attention factor).
    pub factor: f64,
}

/// Change of the rotary wavelengths.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// As trained first.
    None,
    /// As trained first up to the original positions; a longer sequence has a larger base, by its length (NTK).
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Positions up to which nothing changes.
        original_max_positions: f64,
    },
    /// All angles divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are short.
        high_freq_factor: f64,
        /// Context of the first training.
        original_max_positions: f64,
    },
    /// Long wavelengths divided by `factor`, short ones kept, a linear passage between, by the number of turns within the
    /// original positions (arXiv 2309.00071).
    Yarn {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Turns from which on a wavelength is short.
        beta_fast: f64,
        /// Turns up to which it is long.
        beta_slow: f64,
        /// Context of the first training.
        original_max_positions: f64,
        /// Whether the ends of the passage are rounded to whole channels.
        truncate: bool,
    },
    /// A divisor for each pair of channels; other ones for sequences longer than the original positions (arXiv 2402.13753).
    Long {
        /// Up to the original positions.
        short: Vec<f64>,
        /// Beyond them.
        long: Vec<f64>,
        /// Context of the first training.
        original_max_positions: f64,
    },
    /// Not known: whatever turns nothing works, the rest is refused.
    Unsupported {
        /// The key, what is known, and the way out.
        why: String,
    },
}

/// What all layers of a model share, and what stands around them.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Each position sees only itself and earlier ones.
    pub causal: bool,
    /// Longest sequence.
    pub max_positions: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// The token table serves as output projection.
    pub tied: bool,
    /// What comes before the layers.
    pub embedding: Embedding,
    /// The norm after the last layer.
    pub final_norm: Option<Norm>,
    /// What makes logits; none for encoders whose output is the last hidden state.
    pub head: Option<Head>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}
