use minitron_core::architectures::{Bias, Decoder, ExpertKeys, ExpertNames};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Clamped, Selection, Storage};
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::of_narrower_heads;
use super::mixtral::everywhere;
use super::qwen3_moe::READS;

/// gpt-oss: experts in one tensor, gate and up interleaved, within bounds; a sink in every head's
/// softmax; windows in every other layer.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GptOss {}

const NAMES: ExpertNames = ExpertNames {
    router: "mlp.router",
    gate: "mlp.experts.gate_up_proj",
    down: "mlp.experts.down_proj",
    ..ExpertNames::USUAL
};

#[typetag::serde(name = "gpt_oss")]
impl Architecture for GptOss {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gpt_oss")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-5)?,
        };
        let rope = json!({ "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0,
            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096 });
        let mut defaults = json!({ "max_position_embeddings": 131_072, "head_dim": 64,
            "num_key_value_heads": 8, "num_experts_per_tok": 4, "sliding_window": 128,
            "rope_theta": 150_000.0 });
        let is_stated = |key: &str| config.get(key).is_some_and(|value| !value.is_null());
        if !is_stated("rope_parameters") && !is_stated("rope_scaling") {
            defaults["rope_parameters"] = rope;
        }
        let mut decoder = Decoder::new("gpt_oss", config, ShapeKeys::USUAL, norm, defaults)?;
        let biases = decoder.config.flag_or("attention_bias", true)?;
        decoder.bias = Bias {
            query_key_value: biases,
            attention_output: biases,
            mlp: false,
        };
        decoder.rotate(RotaryDefaults::default())?;
        let window = decoder.config.size_opt("sliding_window")?;
        decoder.sliding(window, |layer| layer.is_multiple_of(2))?;
        decoder.reads = READS;
        decoder.attention(|_, attention| attention.sinks = true);
        let n = ExpertKeys::of_number(&decoder.config, &["num_local_experts", "num_experts"]);
        let mut experts = everywhere(&decoder, n, 128, NAMES)?;
        experts.moe.router.selection = Selection::TopFirst;
        experts.moe.router.renormalise = false;
        experts.moe.storage = Storage::Stacked(Clamped {
            limit: decoder.config.number_or("swiglu_limit", 7.0)?,
            slope: decoder.config.number_or("swiglu_alpha", 1.702)?,
        });
        (experts.router_bias, experts.bias) = (true, true);
        let layers = vec![true; decoder.shape.n_layers];
        decoder.place_experts(experts, &layers);
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

minitron_core::plugin! {
    Architecture for GptOss {
        tag: "gpt_oss",
        summary: "gpt-oss (experts in one tensor, attention sinks, alternating windows)",
        source: "arXiv 2508.10925",
    }
}
