//! How a block computes, as data.

use serde::{Deserialize, Serialize};

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

    /// Where families state it.
    const KEYS: [&str; 2] = ["hidden_act", "activation_function"];

    /// Refuses one that is not known.
    ///
    /// # Errors
    /// `Checkpoint` with the config's word for it: the blame lies with the config, not with a recipe.
    pub(super) fn check_known(self, config: &Config) -> Result<()> {
        if self != Activation::Unknown {
            return Ok(());
        }
        let key = Self::KEYS.into_iter().find(|key| config.get(key).is_some()).unwrap_or_default();
        match Activation::parse(config.word_or(key, "")?) {
            Err(Error::Recipe(message)) => Err(config.error(format!("`{key}`: {message}"))),
            _ => Err(config.error("an activation function that is not known")),
        }
    }
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) · g
    Rms,
    /// (x − mean) / std · g + b
    Layer,
    /// Layer norm whose stored gain is g − 1 (Nemotron).
    Layer1p,
}

/// Where norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// x + f(norm(x)), and one norm after the last layer.
    Pre,
    /// norm(x + f(x)) (BERT).
    Post,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A table added to the embeddings.
    Learned,
    /// Rotation of queries and keys.
    Rotary(Rotary),
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
}

/// Change of the rotary wavelengths.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// As trained first.
    None,
    /// As trained first up to the model's positions; beyond them `transformers` stretches all wavelengths, and nothing is
    /// computed here.
    Dynamic,
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
    /// Not known: whatever turns nothing works, the rest is refused.
    Unsupported {
        /// The key, what is known, and the way out.
        why: String,
    },
}

/// What a forward pass yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Logits over the vocabulary.
    Logits,
    /// The last hidden state (encoders without a head).
    Hidden,
}

/// Everything that a family's blocks have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Which normalisation.
    pub norm: NormKind,
    /// Added to the variance.
    pub norm_eps: f64,
    /// Before or after.
    pub norm_place: NormPlace,
    /// Non-linearity.
    pub activation: Activation,
    /// Positions.
    pub positions: Positions,
    /// Each position sees only itself and earlier ones.
    pub causal: bool,
    /// Channels of a head.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// The token table serves as output projection.
    pub tied: bool,
    /// Logits or the last hidden state.
    pub output: Output,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}
