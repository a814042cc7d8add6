use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::{LLAMA_CPP, of_narrower_heads, wants_square};

/// Granite 3: Llama's blocks with factors on embeddings, attention, sums and logits.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Granite {}

#[typetag::serde(name = "granite")]
impl Architecture for Granite {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("granite")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 2048 });
        let mut decoder = Decoder::new("granite", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults::default())?;
        decoder.embedding.scale = config.number_or("embedding_multiplier", 1.0)?;
        decoder.residual_scale = config.number_or("residual_multiplier", 1.0)?;
        decoder.head.scale = 1.0 / config.number_or("logits_scaling", 1.0)?;
        let scale = config.number_or("attention_multiplier", 1.0)?;
        decoder.attention(|_, attention| attention.scale = Some(scale));
        decoder.reads = &[
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "attention_multiplier",
        ];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let what = "its converter leaves head_dim out, so the file does not load";
        let square = wants_square(LLAMA_CPP, what, spec, sizes);
        square
            .into_iter()
            .chain(of_narrower_heads(spec, sizes))
            .collect()
    }
}

minitron_core::plugin! {
    Architecture for Granite {
        tag: "granite",
        summary: "Granite 3, dense (factors on embeddings, attention, sums and logits)",
        source: "transformers, models/granite",
    }
}
