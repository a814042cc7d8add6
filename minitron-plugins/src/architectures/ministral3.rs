use minitron_core::blueprint::{Blueprint, Decoder, Evidence, Norm, NormKind, RotaryDefaults, ShapeKeys};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gemma3::text_config;

/// Ministral 3: yarn, and queries that grow with their position.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ministral3 {}

#[typetag::serde(name = "ministral3")]
impl Architecture for Ministral3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("ministral3")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        decoder(evidence.config)?.finish(evidence)
    }
}

/// The decoder that a config, or the language part of one, describes.
pub(super) fn decoder(config: &Config) -> Result<Decoder> {
    let norm = Norm { kind: NormKind::Rms, eps: config.number_or("rms_norm_eps", 1e-5)? };
    let rope = json!({
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1
    });
    let defaults = json!({
        "max_position_embeddings": 262_144, "head_dim": 128, "num_key_value_heads": 8, "rope_parameters": rope
    });
    let mut decoder = Decoder::new("ministral3", config, ShapeKeys::USUAL, norm, defaults)?;
    decoder.rotate(RotaryDefaults::default())?;
    let window = decoder.config.size_opt("sliding_window")?;
    decoder.window(window);
    let rope = decoder.config.nested("rope_parameters")?.unwrap_or_else(|| decoder.config.clone());
    let positions = rope.number_or("original_max_position_embeddings", decoder.max_positions as f64)?;
    let growth = rope.number_or("llama_4_scaling_beta", 0.0)?;
    decoder.attention(|_, attention| attention.growth = (growth != 0.0).then_some((growth, positions)));
    decoder.reads = &["sliding_window", "layer_types"];
    Ok(decoder)
}

/// Mistral Small 3.1 and Ministral 3 with a vision tower: the language model inside is pruned, the rest travels as it is.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mistral3 {}

#[typetag::serde(name = "mistral3")]
impl Architecture for Mistral3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("mistral3")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let text = text_config(evidence.config)?;
        let decoder = match text.word_or("model_type", "mistral")? {
            "ministral3" => decoder(&text)?,
            "mistral" => super::mistral::decoder(&text)?,
            other => {
                let message = format!("`text_config.model_type`: expected mistral or ministral3, got {other}");
                return Err(evidence.config.error(message));
            }
        };
        let names = ("language_model.model.", "language_model.lm_head");
        decoder
            .inside("mistral3", evidence.config, names, &["vision_tower.", "multi_modal_projector."])?
            .finish(evidence)
    }
}

minitron_core::plugin! {
    Architecture for Ministral3 {
        tag: "ministral3",
        summary: "Ministral 3 (yarn, queries that grow with their position)",
        source: "transformers, models/ministral3",
    }
}

minitron_core::plugin! {
    Architecture for Mistral3 {
        tag: "mistral3",
        summary: "the language model inside a Mistral Small 3.1 or Ministral 3 that sees",
        source: "transformers, models/mistral3",
    }
}
