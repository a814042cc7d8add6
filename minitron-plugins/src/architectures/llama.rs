use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, Constraint, HIDDEN, ModelSpec, Norm, NormKind, RotaryDefaults,
    ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::of_narrower_heads;
use super::decilm::of_llama;

/// Llama 1 to 3: gated MLP, RMS norm, rotary positions, grouped queries.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Llama {}

#[typetag::serde(name = "llama")]
impl Architecture for Llama {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("llama")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 2048 });
        let mut decoder = Decoder::new("llama", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults::default())?;
        // LlamaConfig refuses other widths even where head_dim is stated.
        decoder.constraints.push(Constraint::heads_divide_hidden());
        decoder.buffers = &["rotary_emb.inv_freq"];
        decoder.reads = &["partial_rotary_factor"];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let mut limits = Vec::new();
        if let Some(width) = spec.attention_width_beside_hidden(sizes) {
            let hidden = spec.size_at(HIDDEN, sizes);
            let message = format!(
                "ORTModelForCausalLM sizes its cache by hidden / heads and fails at the first \
                 token: heads x head_dim is {width}, hidden {hidden}; keep them equal with \
                 --square, or load with use_cache=False"
            );
            limits.push(ClientLimit::new("optimum", message));
        }
        limits.extend(of_narrower_heads(spec, sizes));
        limits
    }

    fn with_layers_apart(&self, config: &Config) -> Option<Config> {
        of_llama(config)
    }
}

minitron_core::plugin! {
    Architecture for Llama {
        tag: "llama",
        summary: "Llama 1 to 3 and what shares its config (grouped queries, biases, linear, llama3 \
                  and dynamic rope scaling)",
        source: "arXiv 2302.13971, arXiv 2407.21783",
    }
}
