use minitron_core::architectures::{Bias, Decoder};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::{llama_cpp_wants_square, of_narrower_heads, vllm_wants_square};

/// Qwen2 and Qwen2.5: Llama's blocks with biases on queries, keys and values.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Qwen2 {}

#[typetag::serde(name = "qwen2")]
impl Architecture for Qwen2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("qwen2")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 32_768 });
        let mut decoder = Decoder::new("qwen2", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.bias = Bias {
            query_key_value: true,
            ..Bias::default()
        };
        decoder.rotate(RotaryDefaults::default())?;
        windows(&mut decoder)?;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let limits = [
            vllm_wants_square(spec, sizes),
            llama_cpp_wants_square(spec, sizes),
        ];
        limits
            .into_iter()
            .flatten()
            .chain(of_narrower_heads(spec, sizes))
            .collect()
    }
}

/// Windows only where `use_sliding_window` is set, and from `max_window_layers` on.
pub(super) fn windows(decoder: &mut Decoder) -> Result<()> {
    let slides = decoder.config.flag_or("use_sliding_window", false)?;
    let window = decoder.config.size_or("sliding_window", 4096)?;
    let first = decoder.config.count_or("max_window_layers", 28)?;
    decoder.sliding(slides.then_some(window), |layer| slides && layer >= first)?;
    decoder.reads = &["sliding_window", "layer_types"];
    Ok(())
}

minitron_core::plugin! {
    Architecture for Qwen2 {
        tag: "qwen2",
        summary: "Qwen2 and Qwen2.5 (biases on queries, keys and values, sliding windows from a \
                  layer on)",
        source: "arXiv 2407.10671, arXiv 2412.15115",
    }
}
