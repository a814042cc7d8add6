use minitron_core::architectures::{Bias, Decoder, Names};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::Gate;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::{
    llama_cpp_wants_square, of_narrower_heads, vllm_turns_plainly, vllm_wants_square,
};

/// StarCoder2: layer norms and an MLP without a gate in Llama's blocks, biases, one sliding window
/// or none.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Starcoder2 {}

const NAMES: Names = Names {
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    ..Names::USUAL
};

#[typetag::serde(name = "starcoder2")]
impl Architecture for Starcoder2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("starcoder2")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Layer,
            eps: config.number_or("norm_epsilon", 1e-5)?,
        };
        let defaults = json!({ "max_position_embeddings": 4096, "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh", "initializer_range": 0.018042,
            "tie_word_embeddings": true });
        let mut decoder = Decoder::new("starcoder2", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.names = NAMES;
        decoder.norm_bias = true;
        let bias = config.flag_or("use_bias", true)?;
        decoder.bias = Bias {
            query_key_value: bias,
            attention_output: bias,
            mlp: bias,
        };
        decoder.rotate(RotaryDefaults::default())?;
        let window = config.size_opt("sliding_window")?;
        decoder.window(window);
        decoder.mlp.gate = Gate::None;
        decoder.reads = &["sliding_window", "layer_types"];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let limits = [
            vllm_wants_square(spec, sizes),
            vllm_turns_plainly(spec, sizes),
            llama_cpp_wants_square(spec, sizes),
        ];
        limits
            .into_iter()
            .flatten()
            .chain(of_narrower_heads(spec, sizes))
            .collect()
    }
}

minitron_core::plugin! {
    Architecture for Starcoder2 {
        tag: "starcoder2",
        summary: "StarCoder2 (layer norms, biases, an MLP without a gate, a sliding window)",
        source: "arXiv 2402.19173",
    }
}
