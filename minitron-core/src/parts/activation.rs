//! Non-linearities by their names in configs.

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
        serde_json::from_value(serde_json::Value::from(word)).map_err(|_| {
            Error::unknown(
                "activation function",
                word,
                ["silu", "gelu", "gelu_new", "relu", "relu2"],
            )
        })
    }

    /// Reads the word under a config's key; an unknown one is kept as such, for what runs the model
    /// to refuse.
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
    /// `Checkpoint` with the config's word for it: the blame lies with the config, not with a
    /// recipe.
    pub fn check_words(config: &Config) -> Result<()> {
        let entries = config.to_value();
        let words = entries
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, word)| Some((key, word.as_str()?)));
        for (key, word) in words.filter(|(key, _)| key.contains("activ") || key.ends_with("_act")) {
            if let Err(Error::Recipe(message)) = Activation::parse(word) {
                return Err(config.error(format!("`{key}`: {message}")));
            }
        }
        Ok(())
    }
}
