use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{CheckpointInfo, ClientLimit, ModelSpec, RotaryDefaults, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::clients::{llama_cpp_wants_square, of_narrower_heads};
use super::olmo2::blocks;

/// OLMo 3: OLMo 2 with windows in three of four layers, which turn unscaled.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Olmo3 {}

#[typetag::serde(name = "olmo3")]
impl Architecture for Olmo3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("olmo3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let mut decoder = blocks("olmo3", evidence.config)?;
        let window = if decoder.config.states("sliding_window") {
            decoder.config.size_opt("sliding_window")?
        } else {
            Some(4096)
        };
        let slides = decoder.sliding(window, |layer| !(layer + 1).is_multiple_of(4))?;
        let far = RotaryDefaults {
            theta: 5e5,
            ..RotaryDefaults::default()
        };
        // The class gives a base that stands beside the parameters to layers without a window
        // alone.
        let near = RotaryDefaults {
            own_theta: true,
            theta_key: "",
            ..far
        };
        decoder.rotate_by_type(&slides, far, near)?;
        decoder.reads = &["sliding_window", "layer_types"];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        llama_cpp_wants_square(spec, sizes)
            .into_iter()
            .chain(of_narrower_heads(spec, sizes))
            .collect()
    }
}

minitron_core::plugin! {
    Architecture for Olmo3 {
        tag: "olmo3",
        summary: "OLMo 3 (OLMo 2 with windows in three of four layers)",
        source: "transformers, models/olmo3",
    }
}
