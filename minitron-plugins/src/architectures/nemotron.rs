use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::Gate;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, HIDDEN, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys,
    Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::of_narrower_heads;

/// Nemotron-3, Nemotron-4 and the first Minitron models: squared ReLU without a gate, layer norm
/// with the gain stored less one, rotary positions on a part of each head, grouped queries.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nemotron {}

#[typetag::serde(name = "nemotron")]
impl Architecture for Nemotron {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("nemotron")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Layer1p,
            eps: config.number_or("norm_eps", 1e-5)?,
        };
        let defaults = json!({ "max_position_embeddings": 4096, "hidden_act": "relu2",
            "initializer_range": 0.0134 });
        let mut decoder = Decoder::new("nemotron", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults {
            partial: 0.5,
            ..RotaryDefaults::default()
        })?;
        decoder.norm_bias = true;
        decoder.mlp.gate = Gate::None;
        decoder.reads = &["partial_rotary_factor"];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let mut limits = Vec::new();
        if let Some(width) = spec.attention_width_beside_hidden(sizes) {
            let hidden = spec.size_at(HIDDEN, sizes);
            let message = format!(
                "its converter takes this Nemotron, but the file does not load: heads x head_dim \
                 is {width}, hidden {hidden}; keep them equal with --square"
            );
            limits.push(ClientLimit::new("llama.cpp", message));
        }
        limits.extend(of_narrower_heads(spec, sizes));
        limits
    }
}

minitron_core::plugin! {
    Architecture for Nemotron {
        tag: "nemotron",
        summary: "Nemotron-3 and -4 and Minitron (squared ReLU, layer norm 1p, partial rotary, \
                  grouped queries)",
        source: "arXiv 2402.16819, arXiv 2407.14679",
    }
}
