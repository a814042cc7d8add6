use minitron_core::blueprint::{
    Activation, Blueprint, ClientLimit, Evidence, HIDDEN, NormKind, NormPlace, Options, Output, Positions, Role,
    Rotary, RotaryScaling, Shape, ShapeKeys, Sizes, Slot, Table, fixed,
};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::split_attention;

/// Llama 1 to 3: gated MLP, RMS norm, rotary positions, grouped queries.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Llama {}

#[typetag::serde(name = "llama")]
impl Architecture for Llama {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("llama")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let config = evidence.config;
        let shape = Shape::read(config, &ShapeKeys::USUAL, None, Some(2048))?;
        let tied = config.flag_or("tie_word_embeddings", false)?;
        let attention_bias = config.flag_or("attention_bias", false)?;
        let mlp_bias = config.flag_or("mlp_bias", false)?;
        let mut rotary = Rotary::read(config, &shape, 1.0)?;
        if rotary.n_rotated != shape.head_dim {
            let why = "`partial_rotary_factor`: expected 1 in this family, got less; `transformers` turns all channels \
                       whatever it says, other tools a part: take it out where all turn (what turns nothing works)";
            rotary.scaling = RotaryScaling::Unsupported { why: why.to_owned() };
        }

        let mut table = Table::new("model.");
        let token_sides = vec![fixed(shape.vocab), shape.stream()];
        table.tensor("embed_tokens.weight", Role::TokenEmbedding, Slot::Weight, token_sides);
        if tied {
            table.also_known_as(&["lm_head.weight"]);
        }
        for layer_idx in 0..shape.n_layers {
            let (stream, neurons) = (shape.stream(), shape.neurons(layer_idx));
            table.layer(Some(layer_idx));
            table.norm("layers.{l}.input_layernorm", Role::AttentionNorm, shape.stream(), ("weight", None));
            split_attention(&mut table, &shape, layer_idx, attention_bias);
            table
                .norm("layers.{l}.post_attention_layernorm", Role::MlpNorm, shape.stream(), ("weight", None))
                .linear("layers.{l}.mlp.gate_proj", Role::Gate, neurons.clone(), stream.clone(), mlp_bias)
                .linear("layers.{l}.mlp.up_proj", Role::Up, neurons.clone(), stream.clone(), mlp_bias)
                .linear("layers.{l}.mlp.down_proj", Role::Down, stream, neurons, mlp_bias);
        }
        table.layer(None).norm("norm", Role::FinalNorm, shape.stream(), ("weight", None));
        if !tied {
            table.unprefixed(|t| _ = t.linear("lm_head", Role::Head, fixed(shape.vocab), shape.stream(), false));
        }

        let options = Options {
            norm: NormKind::Rms,
            norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
            norm_place: NormPlace::Pre,
            activation: Activation::read(config, "hidden_act", "silu")?,
            positions: Positions::Rotary(rotary),
            causal: true,
            head_dim: shape.head_dim,
            max_positions: shape.max_positions,
            vocab: shape.vocab,
            tied,
            output: Output::Logits,
            initializer_range: config.number_or("initializer_range", 0.02)?,
        };
        let mut blueprint = Blueprint::new("llama", config, shape.dims(&ShapeKeys::USUAL), table.finish(), options)?;
        // Left out, it would be derived from the student's own width.
        blueprint.pinned.push(("head_dim".to_owned(), shape.head_dim.into()));
        // LlamaConfig refuses other widths even where head_dim is stated.
        blueprint.heads_divide_hidden = true;
        blueprint.buffers = &["rotary_emb.inv_freq"];
        Ok(blueprint)
    }

    fn client_limits(&self, blueprint: &Blueprint, sizes: &Sizes) -> Vec<ClientLimit> {
        let limit = |width: usize| {
            let hidden = blueprint.size_at(HIDDEN, sizes);
            ClientLimit::new(
                "optimum",
                format!(
                    "ORTModelForCausalLM sizes its cache by hidden / heads and fails at the first token: heads x head_dim is \
                     {width}, hidden {hidden}; keep them equal with --square, or load with use_cache=False"
                ),
            )
        };
        blueprint.attention_width_beside_hidden(sizes).map(limit).into_iter().collect()
    }
}

minitron_core::plugin! {
    Architecture for Llama {
        tag: "llama",
        summary: "Llama 1 to 3 and what shares its config (grouped queries, biases, linear, llama3 and dynamic rope scaling)",
        source: "arXiv 2302.13971, arXiv 2407.21783",
    }
}
