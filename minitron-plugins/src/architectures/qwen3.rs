use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::QkNorm;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::of_narrower_heads;
use super::qwen2::windows;

/// Qwen3, dense: norms on every head's queries and keys.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Qwen3 {}

#[typetag::serde(name = "qwen3")]
impl Architecture for Qwen3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("qwen3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 32_768, "head_dim": 128,
            "num_key_value_heads": 32 });
        let mut decoder = Decoder::new("qwen3", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults::default())?;
        decoder.qk_norm(QkNorm::Head);
        windows(&mut decoder)?;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

minitron_core::plugin! {
    Architecture for Qwen3 {
        tag: "qwen3",
        summary: "Qwen3, dense (norms on queries and keys, heads wider than the stream's share)",
        source: "arXiv 2505.09388",
    }
}
