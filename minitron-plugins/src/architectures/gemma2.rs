use minitron_core::architectures::{Decoder, Norms};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    Activation, CheckpointInfo, ClientLimit, Constraint, ModelSpec, Norm, NormKind, RotaryDefaults,
    ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clients::{
    full_every, llama_cpp_counts_layers, llama_cpp_scales_gemma, of_narrower_heads,
};

/// Gemma 2: norms before and after each part, caps on attention and logits, windows in every other
/// layer.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gemma2 {}

#[typetag::serde(name = "gemma2")]
impl Architecture for Gemma2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gemma2")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let caps = json!({ "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "max_position_embeddings": 8192 });
        let mut decoder = blocks("gemma2", evidence.config, caps)?;
        decoder.rotate(RotaryDefaults::default())?;
        let cap = positive(&decoder.config, "attn_logit_softcapping")?;
        decoder.attention(|_, attention| attention.softcap = cap);
        let window = decoder.config.size_opt("sliding_window")?;
        decoder.sliding(window, |layer| layer.is_multiple_of(2))?;
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        limits(spec, sizes, (2, 46))
    }
}

/// What llama.cpp makes of a model with a layer without a window in every `period`, of which the
/// largest has `largest` layers.
pub(super) fn limits(
    spec: &ModelSpec,
    sizes: &Sizes,
    (period, largest): (usize, usize),
) -> Vec<ClientLimit> {
    let text = spec.config.nested("text_config").ok().flatten();
    let scalar = text
        .as_ref()
        .unwrap_or(&spec.config)
        .number_or("query_pre_attn_scalar", 256.0);
    let what = format!("one layer in {period} for one without a window");
    let limits = [
        llama_cpp_counts_layers(spec, sizes, ("layer_types", &what), full_every(period)),
        scalar
            .ok()
            .and_then(|scalar| llama_cpp_scales_gemma(spec, sizes, largest, scalar)),
    ];
    limits
        .into_iter()
        .flatten()
        .chain(of_narrower_heads(spec, sizes))
        .collect()
}

/// What Gemma 2 and 3 share.
pub(super) fn blocks(
    architecture: &'static str,
    config: &Config,
    defaults: Value,
) -> Result<Decoder> {
    config.only("use_bidirectional_attention", false)?;
    let norm = Norm {
        kind: NormKind::Rms1p,
        eps: config.number_or("rms_norm_eps", 1e-6)?,
    };
    let config = config.with_defaults(defaults).with_defaults(json!({
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
        "tie_word_embeddings": true
    }));
    let mut decoder = Decoder::new(architecture, &config, ShapeKeys::USUAL, norm, json!({}))?;
    decoder.norms = Norms::Around;
    decoder.names.pre_norms = ["input_layernorm", "pre_feedforward_layernorm"];
    decoder.stated_biases()?;
    decoder.mlp.activation = Activation::read(&config, "hidden_activation", "gelu_pytorch_tanh")?;
    let scale = config.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    decoder.attention(|_, attention| attention.scale = Some(scale));
    decoder.embedding.scale = (decoder.shape.hidden as f64).sqrt();
    decoder.embedding.scales_with_hidden = true;
    decoder.head.softcap = positive(&config, "final_logit_softcapping")?;
    decoder.constraints.push(Constraint::heads_divide_hidden());
    decoder.reads = READS;
    Ok(decoder)
}

const READS: &[&str] = &[
    "hidden_activation",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "sliding_window",
    "layer_types",
    "use_bidirectional_attention",
];

/// A cap, where there is one.
fn positive(config: &Config, key: &str) -> Result<Option<f64>> {
    let cap = config.number_or(key, 0.0)?;
    if cap < 0.0 {
        return Err(config.error(format!(
            "`{key}`: expected a number above 0, or null, got {cap}; correct config.json"
        )));
    }
    Ok((cap > 0.0).then_some(cap))
}

minitron_core::plugin! {
    Architecture for Gemma2 {
        tag: "gemma2",
        summary: "Gemma 2 (norms around parts, soft caps, windows in every other layer)",
        source: "arXiv 2408.00118",
    }
}
