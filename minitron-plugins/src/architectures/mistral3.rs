use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{CheckpointInfo, ClientLimit, ModelSpec, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clients::of_narrower_heads;
use super::gemma3::text_config;
use super::ministral3::decoder;

/// Mistral Small 3.1 and Ministral 3 with a vision tower: the language model inside is pruned, the
/// rest travels as it is.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mistral3 {}

#[typetag::serde(name = "mistral3")]
impl Architecture for Mistral3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("mistral3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let text = text_config(evidence.config)?;
        let decoder = match text.word_or("model_type", "mistral")? {
            "ministral3" => decoder(&text)?,
            "mistral" => super::mistral::decoder(&text)?,
            other => {
                let message = format!(
                    "`text_config.model_type`: expected mistral or ministral3, got {other}"
                );
                return Err(evidence.config.error(message));
            }
        };
        let names = ("language_model.model.", "language_model.lm_head");
        decoder
            .inside(
                "mistral3",
                evidence.config,
                names,
                &["vision_tower.", "multi_modal_projector."],
            )?
            .finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

minitron_core::plugin! {
    Architecture for Mistral3 {
        tag: "mistral3",
        summary: "the language model inside a Mistral Small 3.1 or Ministral 3 that sees",
        source: "transformers, models/mistral3",
    }
}
