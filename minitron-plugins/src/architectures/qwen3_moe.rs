use minitron_core::architectures::{Decoder, ExpertKeys, ExpertNames, Experts, sparse_layers};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Moe, QkNorm, Router, Storage};
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ConfigKey, ModelSpec, Norm, NormKind, PatternForm, RotaryDefaults,
    ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clients::of_narrower_heads;

/// Qwen3 with experts: Qwen3's attention, a softmax router, an MLP in layers that are named.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Qwen3Moe {}

#[typetag::serde(name = "qwen3_moe")]
impl Architecture for Qwen3Moe {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("qwen3_moe")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 32_768, "intermediate_size": 6144,
            "moe_intermediate_size": 768, "num_key_value_heads": 4, "num_experts_per_tok": 8 });
        let mut decoder = Decoder::new("qwen3_moe", config, ShapeKeys::USUAL, norm, defaults)?;
        let biases = decoder.config.flag_or("attention_bias", false)?;
        decoder.bias.query_key_value = biases;
        decoder.bias.attention_output = biases;
        decoder.rotate(RotaryDefaults::default())?;
        decoder.qk_norm(QkNorm::Head);
        let slides = decoder.config.flag_or("use_sliding_window", false)?;
        let window = decoder.config.size_or("sliding_window", 4096)?;
        decoder.window(slides.then_some(window));
        decoder.reads = READS;
        // A config may state either; 5.x writes the second.
        let n = ExpertKeys::of_number(&decoder.config, &["num_experts", "num_local_experts"]);
        let experts = experts(&decoder, n, 128)?;
        place(&mut decoder, experts)?;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        of_narrower_heads(spec, sizes)
    }
}

/// Keys that say something else of other families.
pub(super) const READS: &[&str] = &[
    "sliding_window",
    "layer_types",
    "num_experts",
    "num_local_experts",
];

/// Experts as Qwen's families state them.
pub(super) fn experts(
    decoder: &Decoder,
    keys: Vec<&'static str>,
    default: usize,
) -> Result<Experts> {
    let config = &decoder.config;
    let mut router = Router::new(config.size("num_experts_per_tok")?);
    router.renormalise = config.flag_or("norm_topk_prob", false)?;
    // The last one that is there counts.
    let n = keys.last().copied().unwrap_or("num_experts");
    Ok(Experts {
        moe: Moe {
            router,
            expert: decoder.mlp.clone(),
            storage: Storage::OneByOne,
            shared: None,
        },
        n: config.size_or(n, default)?,
        width: config.size("moe_intermediate_size")?,
        shared_width: 0,
        keys: ExpertKeys {
            n: keys,
            width: "moe_intermediate_size",
            shared: None,
        },
        names: ExpertNames::USUAL,
        router_bias: false,
        bias: false,
        shared_bias: false,
    })
}

/// Experts in the layers that the config says; those without are named one by one, so that a
/// student's are.
pub(super) fn place(decoder: &mut Decoder, experts: Experts) -> Result<()> {
    let sparse = sparse_layers(&decoder.config, decoder.shape.n_layers)?;
    let dense: Vec<Value> = sparse
        .iter()
        .map(|&is_sparse| (!is_sparse).into())
        .collect();
    let (list, form) = ("mlp_only_layers", PatternForm::Indices);
    // Both together, since a list alone would be read beside the source's step.
    let named = (list.to_owned(), form.written(dense.clone()));
    let step = ("decoder_sparse_step".to_owned(), 1.into());
    decoder.pinned.extend([named, step]);
    let pattern = ConfigKey::pattern_as(form, list, dense);
    decoder.patterns.push(pattern);
    decoder.place_experts(experts, &sparse);
    Ok(())
}

minitron_core::plugin! {
    Architecture for Qwen3Moe {
        tag: "qwen3_moe",
        summary: "Qwen3 with experts (softmax router, dense layers where they are named)",
        source: "arXiv 2505.09388",
    }
}
