use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{CheckpointInfo, ClientLimit, ModelSpec, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clients::of_narrower_heads;
use super::mistral::blocks;

/// Ministral: Mistral's blocks, of which some slide.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ministral {}

#[typetag::serde(name = "ministral")]
impl Architecture for Ministral {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("ministral")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let mut decoder = blocks("ministral", evidence.config)?;
        let window = decoder.config.size_opt("sliding_window")?;
        decoder.sliding(window, |_| window.is_some())?;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

minitron_core::plugin! {
    Architecture for Ministral {
        tag: "ministral",
        summary: "Ministral 8B (sliding windows by layer)",
        source: "transformers, models/ministral",
    }
}
