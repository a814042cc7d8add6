use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Gate, Layout};
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, RotaryScaling,
    ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::llama_cpp_wants_square;

/// Phi-3, Phi-4 and their minis: fused projections, rotations of a part of each head, longrope.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phi3 {}

#[typetag::serde(name = "phi3")]
impl Architecture for Phi3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("phi3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-5)?,
        };
        let defaults =
            json!({ "max_position_embeddings": 4096, "original_max_position_embeddings": 4096 });
        let mut decoder = Decoder::new("phi3", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.rotate(RotaryDefaults {
            reads_partial: true,
            ..RotaryDefaults::default()
        })?;
        let window = decoder.config.size_opt("sliding_window")?;
        decoder.window(window);
        decoder.attention(|_, attention| attention.layout = Layout::Fused);
        decoder.mlp.gate = Gate::Fused;
        decoder.keeps_channels =
            Some("its class wants a divisor for each pair of hidden / heads channels");
        let mut rotaries = decoder.attention.iter().filter_map(|of| of.rotary.as_ref());
        if rotaries.any(|rotary| matches!(rotary.scaling, RotaryScaling::Long { .. })) {
            // The class wants a divisor for each pair of hidden / heads channels, whatever head_dim
            // says.
            decoder.keys.head_dim = None;
            decoder.square = true;
        }
        decoder.reads = &["partial_rotary_factor", "sliding_window", "layer_types"];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        llama_cpp_wants_square(spec, sizes).into_iter().collect()
    }
}

minitron_core::plugin! {
    Architecture for Phi3 {
        tag: "phi3",
        summary: "Phi-3, Phi-4 and their minis (fused projections, partial rotations, longrope)",
        source: "arXiv 2404.14219, arXiv 2412.08905",
    }
}
