use minitron_core::architectures::{Decoder, ExpertKeys, ExpertNames, Experts};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Moe, Router, Storage};
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::clients::of_narrower_heads;
use super::qwen3_moe::READS;

/// Mixtral: Mistral's blocks with experts in the place of every MLP, whose width is theirs.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mixtral {}

const NAMES: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    gate: "block_sparse_moe.experts.{e}.w1",
    up: "block_sparse_moe.experts.{e}.w3",
    down: "block_sparse_moe.experts.{e}.w2",
    ..ExpertNames::USUAL
};

#[typetag::serde(name = "mixtral")]
impl Architecture for Mixtral {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("mixtral")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-5)?,
        };
        let defaults = json!({ "max_position_embeddings": 131_072, "num_key_value_heads": 8,
            "rope_theta": 1e6, "num_experts_per_tok": 2 });
        let mut decoder = Decoder::new("mixtral", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.rotate(RotaryDefaults::default())?;
        let window = decoder.config.size_opt("sliding_window")?;
        decoder.window(window);
        decoder.reads = READS;
        let n = ExpertKeys::of_number(&decoder.config, &["num_local_experts", "num_experts"]);
        let experts = everywhere(&decoder, n, 8, NAMES)?;
        let layers = vec![true; decoder.shape.n_layers];
        decoder.place_experts(experts, &layers);
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

/// Experts in every layer, of the width that the config has for MLPs; weights of a token's add up
/// to 1.
pub(super) fn everywhere(
    decoder: &Decoder,
    keys: Vec<&'static str>,
    default: usize,
    names: ExpertNames,
) -> Result<Experts> {
    let mut router = Router::new(decoder.config.size("num_experts_per_tok")?);
    router.renormalise = true;
    let n = keys.last().copied().unwrap_or("num_local_experts");
    Ok(Experts {
        moe: Moe {
            router,
            expert: decoder.mlp.clone(),
            storage: Storage::OneByOne,
            shared: None,
        },
        n: decoder.config.size_or(n, default)?,
        width: decoder.shape.mlp,
        shared_width: 0,
        keys: ExpertKeys {
            n: keys,
            width: decoder.keys.mlp,
            shared: None,
        },
        names,
        router_bias: false,
        bias: false,
        shared_bias: false,
    })
}

minitron_core::plugin! {
    Architecture for Mixtral {
        tag: "mixtral",
        summary: "Mixtral (Mistral's blocks with experts in the place of every MLP)",
        source: "arXiv 2401.04088",
    }
}
