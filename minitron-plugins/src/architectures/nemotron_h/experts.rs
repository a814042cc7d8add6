//! The experts of Nemotron 3 Nano.

use minitron_core::architectures::{Decoder, ExpertKeys, ExpertNames, Experts};
use minitron_core::error::Result;
use minitron_core::mixers::{Groups, Moe, Router, Selection, Shared, Storage};

const EXPERT_NAMES: ExpertNames = ExpertNames {
    router: "mixer.gate",
    correction: "mixer.gate.e_score_correction_bias",
    up: "mixer.experts.{e}.up_proj",
    down: "mixer.experts.{e}.down_proj",
    shared: [
        "mixer.shared_experts.gate_proj",
        "mixer.shared_experts.up_proj",
        "mixer.shared_experts.down_proj",
    ],
    ..ExpertNames::USUAL
};

/// DeepSeek's router over MLPs without gates, and one of its own width for all tokens.
pub(super) fn experts(decoder: &Decoder) -> Result<Experts> {
    let config = &decoder.config;
    if config.size_opt("moe_latent_size")?.is_some() {
        return Err(config.error(
            "`moe_latent_size`: expected null, got experts behind a narrower projection, which is \
             not computed",
        ));
    }
    let groups = Groups {
        n: config.size_or("n_group", 1)?,
        top_k: config.size_or("topk_group", 1)?,
    };
    let keys = ExpertKeys::of_number(config, &["n_routed_experts", "num_local_experts"]);
    let number = keys.last().copied().unwrap_or("n_routed_experts");
    Ok(Experts {
        moe: Moe {
            router: Router {
                top_k: config.size_or("num_experts_per_tok", 2)?,
                selection: Selection::Sigmoid,
                renormalise: config.flag_or("norm_topk_prob", true)?,
                scale: config.number_or("routed_scaling_factor", 1.0)?,
                groups: Some(groups),
            },
            expert: decoder.mlp.clone(),
            storage: Storage::OneByOne,
            shared: Some(Shared {
                mlp: decoder.mlp.clone(),
                gated: false,
            }),
        },
        n: config.size_or(number, 8)?,
        width: config.size_or("moe_intermediate_size", 7688)?,
        shared_width: config.size_or("moe_shared_expert_intermediate_size", 7688)?,
        keys: ExpertKeys {
            n: keys,
            width: "moe_intermediate_size",
            shared: Some("moe_shared_expert_intermediate_size"),
        },
        names: EXPERT_NAMES,
        router_bias: false,
        shared_bias: decoder.bias.mlp,
        bias: false,
    })
}
