use minitron_core::architectures::{Bias, Decoder};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::Shared;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::{llama_cpp_wants_square, of_narrower_heads, vllm_wants_square};
use super::qwen3_moe::{READS, experts, place};

/// Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, experts and a gated one that all tokens go
/// through.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Qwen2Moe {}

#[typetag::serde(name = "qwen2_moe")]
impl Architecture for Qwen2Moe {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("qwen2_moe")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 32_768, "intermediate_size": 5632,
            "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
            "num_key_value_heads": 16, "num_experts_per_tok": 4, "num_experts": 60 });
        let mut decoder = Decoder::new("qwen2_moe", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.bias = Bias {
            query_key_value: decoder.config.flag_or("qkv_bias", true)?,
            ..Bias::default()
        };
        decoder.rotate(RotaryDefaults::default())?;
        windows(&mut decoder)?;
        let mut with_shared = experts(&decoder, vec!["num_experts"], 60)?;
        with_shared.moe.shared = Some(Shared {
            mlp: decoder.mlp.clone(),
            gated: true,
        });
        with_shared.shared_width = decoder.config.size("shared_expert_intermediate_size")?;
        with_shared.keys.shared = Some("shared_expert_intermediate_size");
        place(&mut decoder, with_shared)?;
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

/// Windows only where `use_sliding_window` is set, in every other layer up to `max_window_layers`.
fn windows(decoder: &mut Decoder) -> Result<()> {
    let slides = decoder.config.flag_or("use_sliding_window", false)?;
    let window = decoder.config.count_or("sliding_window", 4096)?;
    let last = decoder.config.count_or("max_window_layers", 28)?;
    let by_default = |layer: usize| slides && layer.is_multiple_of(2) && layer < last;
    decoder.sliding(slides.then_some(window), by_default)?;
    decoder.reads = READS;
    Ok(())
}

minitron_core::plugin! {
    Architecture for Qwen2Moe {
        tag: "qwen2_moe",
        summary: "Qwen1.5-MoE and Qwen2-MoE (experts and a gated one for all tokens)",
        source: "arXiv 2407.10671, section 2.2.2",
    }
}
