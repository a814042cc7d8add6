use minitron_core::blueprint::{
    Activation, Blueprint, Evidence, NormKind, NormPlace, Options, Output, Positions, Role, Rotary, Shape, ShapeKeys,
    Slot, Table, TensorSpec, fixed,
};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A relative of Llama whose queries, keys and values have biases and whose attention output has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Qwen2 {}

minitron_core::plugin! {
    Architecture for Qwen2 {
        tag: "qwen2",
        summary: "Llama's blocks with biases on queries, keys and values",
        source: "arXiv 2407.10671, section 2.2",
    }
}

#[typetag::serde(name = "qwen2")]
impl Architecture for Qwen2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("qwen2")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let config = evidence.config;
        config.only("use_sliding_window", false)?;
        let shape = Shape::read(config, &ShapeKeys::USUAL, None, Some(32_768))?;
        let tied = config.flag_or("tie_word_embeddings", false)?;
        let options = Options {
            norm: NormKind::Rms,
            norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
            norm_place: NormPlace::Pre,
            activation: Activation::read(config, "hidden_act", "silu")?,
            positions: Positions::Rotary(Rotary::read(config, &shape, 1.0)?),
            causal: true,
            head_dim: shape.head_dim,
            max_positions: shape.max_positions,
            vocab: shape.vocab,
            tied,
            output: Output::Logits,
            initializer_range: config.number_or("initializer_range", 0.02)?,
        };
        let dims = shape.dims(&ShapeKeys::USUAL);
        let mut blueprint = Blueprint::new("qwen2", config, dims, tensors(&shape, tied), options)?;
        // Left out, `transformers` derives it from the student's own width.
        blueprint.pinned.push(("head_dim".to_owned(), shape.head_dim.into()));
        Ok(blueprint)
    }
}

fn tensors(shape: &Shape, tied: bool) -> Vec<TensorSpec> {
    let stream = || shape.stream();
    let mut table = Table::new("model.");
    table.tensor("embed_tokens.weight", Role::TokenEmbedding, Slot::Weight, vec![fixed(shape.vocab), stream()]);
    if tied {
        table.also_known_as(&["lm_head.weight"]);
    }
    for layer in 0..shape.n_layers {
        let (queries, keys, neurons) = (|| shape.queries(layer), || shape.keys(layer), || shape.neurons(layer));
        table
            .layer(Some(layer))
            .norm("layers.{l}.input_layernorm", Role::AttentionNorm, stream(), ("weight", None))
            .linear("layers.{l}.self_attn.q_proj", Role::Query, queries(), stream(), true)
            .linear("layers.{l}.self_attn.k_proj", Role::Key, keys(), stream(), true)
            .linear("layers.{l}.self_attn.v_proj", Role::Value, keys(), stream(), true)
            .linear("layers.{l}.self_attn.o_proj", Role::AttentionOutput, stream(), queries(), false)
            .norm("layers.{l}.post_attention_layernorm", Role::MlpNorm, stream(), ("weight", None))
            .linear("layers.{l}.mlp.gate_proj", Role::Gate, neurons(), stream(), false)
            .linear("layers.{l}.mlp.up_proj", Role::Up, neurons(), stream(), false)
            .linear("layers.{l}.mlp.down_proj", Role::Down, stream(), neurons(), false);
    }
    table.layer(None).norm("norm", Role::FinalNorm, stream(), ("weight", None));
    if !tied {
        table.unprefixed(|t| _ = t.linear("lm_head", Role::Head, fixed(shape.vocab), stream(), false));
    }
    table.finish()
}
