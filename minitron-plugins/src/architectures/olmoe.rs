use minitron_core::architectures::{Decoder, ExpertNames};
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
use super::mixtral::everywhere;
use super::qwen3_moe::READS;

/// OLMoE: experts in every layer, norms over whole queries and keys.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Olmoe {}

#[typetag::serde(name = "olmoe")]
impl Architecture for Olmoe {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("olmoe")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-5)?,
        };
        if config.get("clip_qkv").is_some_and(|clip| !clip.is_null()) {
            return Err(config.error(
                "`clip_qkv`: expected null, got a bound of queries, keys and values, which is not \
                 computed; the published models have none",
            ));
        }
        let keys = ShapeKeys {
            head_dim: None,
            ..ShapeKeys::USUAL
        };
        let defaults = json!({ "max_position_embeddings": 4096, "num_experts_per_tok": 8 });
        let mut decoder = Decoder::new("olmoe", config, keys, norm, defaults)?;
        let biases = decoder.config.flag_or("attention_bias", false)?;
        decoder.bias.query_key_value = biases;
        decoder.bias.attention_output = biases;
        decoder.rotate(RotaryDefaults::default())?;
        decoder.qk_norm(QkNorm::Projection);
        decoder.reads = READS;
        let mut experts = everywhere(&decoder, vec!["num_experts"], 64, ExpertNames::USUAL)?;
        experts.moe.router.renormalise = decoder.config.flag_or("norm_topk_prob", false)?;
        let layers = vec![true; decoder.shape.n_layers];
        decoder.place_experts(experts, &layers);
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

minitron_core::plugin! {
    Architecture for Olmoe {
        tag: "olmoe",
        summary: "OLMoE (experts in every layer, norms over whole queries and keys)",
        source: "arXiv 2409.02060",
    }
}
