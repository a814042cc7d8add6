use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{CheckpointInfo, ClientLimit, ModelSpec, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gemma2::limits;
use super::gemma3_text::decoder;

/// Gemma 3 with a vision tower: the language model inside is pruned, the rest travels as it is.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gemma3 {}

#[typetag::serde(name = "gemma3")]
impl Architecture for Gemma3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gemma3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let text = text_config(evidence.config)?;
        let names = ("language_model.model.", "language_model.lm_head");
        let mut decoder = decoder(&text)?.inside("gemma3", evidence.config, names, BESIDE)?;
        // The class with the tower never caps its logits.
        decoder.head.softcap = None;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        limits(spec, sizes, (6, 62))
    }
}

const BESIDE: &[&str] = &["vision_tower.", "multi_modal_projector."];

/// The part of a config that describes the language model.
///
/// # Errors
/// `Checkpoint` where there is none.
pub(super) fn text_config(config: &Config) -> Result<Config> {
    config
        .nested("text_config")?
        .ok_or_else(|| config.error("no `text_config`; expected the language model's config"))
}

minitron_core::plugin! {
    Architecture for Gemma3 {
        tag: "gemma3",
        summary: "the language model inside a Gemma 3 that sees (the vision tower travels as it \
                  is)",
        source: "arXiv 2503.19786",
    }
}
