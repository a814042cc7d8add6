use minitron_core::architectures::{Bias, Decoder, Names};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Gate, Layout};
use minitron_core::spec::{
    Activation, CheckpointInfo, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// GPT-NeoX and Pythia: attention and MLP side by side, queries, keys and values fused head by
/// head.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GptNeox {}

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    tokens: "embed_in",
    query_key_value: "attention.query_key_value",
    attention_output: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    final_norm: "final_layer_norm",
    head: "embed_out",
    ..Names::USUAL
};

#[typetag::serde(name = "gpt_neox")]
impl Architecture for GptNeox {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gpt_neox")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let keys = ShapeKeys {
            kv_heads: None,
            head_dim: None,
            ..ShapeKeys::USUAL
        };
        let norm = Norm {
            kind: NormKind::Layer,
            eps: config.number_or("layer_norm_eps", 1e-5)?,
        };
        let defaults = json!({ "max_position_embeddings": 2048 });
        let mut decoder = Decoder::new("gpt_neox", config, keys, norm, defaults)?;
        decoder.names = NAMES;
        decoder.norm_bias = true;
        let bias = config.flag_or("attention_bias", true)?;
        decoder.bias = Bias {
            query_key_value: bias,
            attention_output: bias,
            mlp: true,
        };
        let partial = config.number_or("rotary_pct", 0.25)?;
        let theta_key = "rotary_emb_base";
        decoder.rotate(RotaryDefaults {
            partial,
            theta_key,
            reads_partial: true,
            ..RotaryDefaults::default()
        })?;
        decoder.attention(|_, attention| attention.layout = Layout::FusedByHead);
        decoder.mlp.activation = Activation::read(config, "hidden_act", "gelu")?;
        decoder.mlp.gate = Gate::None;
        decoder.parallel = config.flag_or("use_parallel_residual", true)?;
        decoder.buffers = &[
            "attention.bias",
            "attention.masked_bias",
            "rotary_emb.inv_freq",
        ];
        decoder.reads = &[
            "rotary_pct",
            "rotary_emb_base",
            "partial_rotary_factor",
            "use_parallel_residual",
        ];
        decoder.finish(evidence)
    }
}

minitron_core::plugin! {
    Architecture for GptNeox {
        tag: "gpt_neox",
        summary: "GPT-NeoX and Pythia (attention beside the MLP, partial rotations)",
        source: "arXiv 2204.06745, arXiv 2304.01373",
    }
}
