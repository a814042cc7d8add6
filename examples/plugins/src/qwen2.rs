use minitron_core::architectures::{Bias, Decoder};
use minitron_core::blueprint::{Blueprint, Evidence, Norm, NormKind, RotaryDefaults, ShapeKeys};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::serde_json::json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A relative of Llama whose queries, keys and values have biases and whose attention output has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Qwen2 {}

minitron_core::plugin! {
    Architecture for Qwen2 {
        tag: "qwen2",
        summary: "Llama's blocks with biases on queries, keys and values",
        source: "arXiv 2407.10671, section 2.2",
    }
}

#[typetag::serde(name = "qwen2")]
impl Architecture for Qwen2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("qwen2")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let config = evidence.config;
        config.only("use_sliding_window", false)?;
        let norm = Norm { kind: NormKind::Rms, eps: config.number_or("rms_norm_eps", 1e-6)? };
        let defaults = json!({ "max_position_embeddings": 32_768 });
        let mut decoder = Decoder::new("qwen2", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.bias = Bias { query_key_value: true, ..Bias::default() };
        decoder.rotate(RotaryDefaults::default())?;
        decoder.finish(evidence)
    }
}
