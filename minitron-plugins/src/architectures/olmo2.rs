use minitron_core::architectures::{Decoder, Norms};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::QkNorm;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::{llama_cpp_wants_square, of_narrower_heads, vllm_wants_square};

/// OLMo 2: norms after each part and none before, norms over all queries and all keys.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Olmo2 {}

#[typetag::serde(name = "olmo2")]
impl Architecture for Olmo2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("olmo2")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let mut decoder = blocks("olmo2", evidence.config)?;
        decoder.rotate(RotaryDefaults::default())?;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let limits = [
            vllm_wants_square(spec, sizes),
            llama_cpp_wants_square(spec, sizes),
        ];
        limits
            .into_iter()
            .flatten()
            .chain(of_narrower_heads(spec, sizes))
            .collect()
    }
}

/// What OLMo 2 and 3 share.
pub(super) fn blocks(architecture: &'static str, config: &Config) -> Result<Decoder> {
    let norm = Norm {
        kind: NormKind::Rms,
        eps: config.number_or("rms_norm_eps", 1e-5)?,
    };
    let defaults = json!({ "max_position_embeddings": 2048 });
    let mut decoder = Decoder::new(architecture, config, ShapeKeys::USUAL, norm, defaults)?;
    decoder.stated_biases()?;
    decoder.norms = Norms::Post;
    decoder.qk_norm(QkNorm::Projection);
    Ok(decoder)
}

minitron_core::plugin! {
    Architecture for Olmo2 {
        tag: "olmo2",
        summary: "OLMo 2 (norms after parts, norms over whole queries and keys)",
        source: "arXiv 2501.00656",
    }
}
