use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clients::of_narrower_heads;
use super::decilm::of_llama;

/// Mistral and Mistral Small 3: Llama's blocks with one sliding window, or none, in all layers.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mistral {}

#[typetag::serde(name = "mistral")]
impl Architecture for Mistral {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("mistral")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        decoder(evidence.config)?.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }

    fn with_layers_apart(&self, config: &Config) -> Option<Config> {
        let mut stated = config.with_defaults(defaults());
        let has_window = stated.get("sliding_window").is_some();
        stated.remove("sliding_window");
        (!has_window).then(|| of_llama(&stated)).flatten()
    }
}

/// The decoder that a config, or the language part of one, describes.
pub(super) fn decoder(config: &Config) -> Result<Decoder> {
    let mut decoder = blocks("mistral", config)?;
    let window = decoder.config.size_opt("sliding_window")?;
    decoder.window(window);
    Ok(decoder)
}

/// Llama's blocks with Mistral's defaults; a window that is not stated is 4096, `null` is none.
pub(super) fn blocks(architecture: &'static str, config: &Config) -> Result<Decoder> {
    let norm = Norm {
        kind: NormKind::Rms,
        eps: config.number_or("rms_norm_eps", 1e-6)?,
    };
    let mut decoder = Decoder::new(architecture, config, ShapeKeys::USUAL, norm, defaults())?;
    decoder.rotate(RotaryDefaults::default())?;
    decoder.reads = &["sliding_window", "layer_types"];
    Ok(decoder)
}

fn defaults() -> Value {
    json!({ "max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096 })
}

minitron_core::plugin! {
    Architecture for Mistral {
        tag: "mistral",
        summary: "Mistral 7B to Mistral Small 3 (a sliding window in all layers, or none)",
        source: "arXiv 2310.06825",
    }
}
