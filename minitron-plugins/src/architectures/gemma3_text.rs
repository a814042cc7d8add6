use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::QkNorm;
use minitron_core::spec::{CheckpointInfo, ClientLimit, ModelSpec, RotaryDefaults, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gemma2::{blocks, limits};

/// Gemma 3, text: norms of queries and keys, two rotations, five layers with a window to one
/// without.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gemma3Text {}

#[typetag::serde(name = "gemma3_text")]
impl Architecture for Gemma3Text {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gemma3_text")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        decoder(evidence.config)?.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        limits(spec, sizes, (6, 62))
    }
}

/// The decoder that a config, or the language part of one, describes.
pub(super) fn decoder(config: &Config) -> Result<Decoder> {
    let defaults = json!({ "vocab_size": 262_208, "max_position_embeddings": 131_072 });
    let mut decoder = blocks("gemma3_text", config, defaults)?;
    decoder.qk_norm(QkNorm::Head);
    let pattern = match decoder.config.size_opt("_sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => decoder.config.size_or("sliding_window_pattern", 6)?,
    };
    let window = decoder.config.size_opt("sliding_window")?;
    let slides = decoder.sliding(window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let far = RotaryDefaults {
        theta: 1e6,
        ..RotaryDefaults::default()
    };
    // Older configs state one base for all layers, which is that of layers without a window.
    let near = RotaryDefaults {
        theta: 1e4,
        theta_key: "rope_local_base_freq",
        own_theta: true,
        ..far
    };
    decoder.rotate_by_type(&slides, far, near)?;
    Ok(decoder)
}

minitron_core::plugin! {
    Architecture for Gemma3Text {
        tag: "gemma3_text",
        summary: "Gemma 3, text alone (norms of queries and keys, two rotations, windows in five \
                  of six layers)",
        source: "arXiv 2503.19786",
    }
}
