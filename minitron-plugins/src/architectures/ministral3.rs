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

use super::clients::of_narrower_heads;

/// Ministral 3: yarn, and queries that grow with their position.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ministral3 {}

#[typetag::serde(name = "ministral3")]
impl Architecture for Ministral3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("ministral3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        decoder(evidence.config)?.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

/// The decoder that a config, or the language part of one, describes.
pub(super) fn decoder(config: &Config) -> Result<Decoder> {
    let norm = Norm {
        kind: NormKind::Rms,
        eps: config.number_or("rms_norm_eps", 1e-5)?,
    };
    let rope = json!({
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
            "original_max_position_embeddings": 16_384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1
    });
    let defaults = json!({
        "max_position_embeddings": 262_144, "head_dim": 128, "num_key_value_heads": 8,
            "rope_parameters": rope
    });
    let mut decoder = Decoder::new("ministral3", config, ShapeKeys::USUAL, norm, defaults)?;
    decoder.rotate(RotaryDefaults::default())?;
    let window = decoder.config.size_opt("sliding_window")?;
    decoder.window(window);
    let rope = decoder
        .config
        .nested("rope_parameters")?
        .unwrap_or_else(|| decoder.config.clone());
    let positions = rope.number_or(
        "original_max_position_embeddings",
        decoder.max_positions as f64,
    )?;
    let growth = rope.number_or("llama_4_scaling_beta", 0.0)?;
    decoder.attention(|_, attention| {
        attention.growth = (growth != 0.0).then_some((growth, positions))
    });
    decoder
        .rotaries
        .iter_mut()
        .for_each(|stated| stated.original = Some(positions));
    decoder.reads = &["sliding_window", "layer_types"];
    Ok(decoder)
}

minitron_core::plugin! {
    Architecture for Ministral3 {
        tag: "ministral3",
        summary: "Ministral 3 (yarn, queries that grow with their position)",
        source: "transformers, models/ministral3",
    }
}
