use minitron_core::blueprint::{
    Activation, Blueprint, ClientLimit, Evidence, HIDDEN, NormKind, NormPlace, Options, Output, Positions, Role,
    Rotary, Shape, ShapeKeys, Sizes, Slot, Table, fixed,
};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::split_attention;

/// Nemotron-3, Nemotron-4 and the first Minitron models: squared ReLU without a gate, layer norm with the gain stored
/// less one, rotary positions on a part of each head, grouped queries.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nemotron {}

const AFFINE: (&str, Option<&str>) = ("weight", Some("bias"));

#[typetag::serde(name = "nemotron")]
impl Architecture for Nemotron {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("nemotron")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let config = evidence.config;
        let shape = Shape::read(config, &ShapeKeys::USUAL, None, Some(4096))?;
        let tied = config.flag_or("tie_word_embeddings", false)?;
        let attention_bias = config.flag_or("attention_bias", false)?;
        let mlp_bias = config.flag_or("mlp_bias", false)?;

        let mut table = Table::new("model.");
        let token_sides = vec![fixed(shape.vocab), shape.stream()];
        table.tensor("embed_tokens.weight", Role::TokenEmbedding, Slot::Weight, token_sides);
        if tied {
            table.also_known_as(&["lm_head.weight"]);
        }
        for layer_idx in 0..shape.n_layers {
            let (stream, neurons) = (shape.stream(), shape.neurons(layer_idx));
            table.layer(Some(layer_idx));
            table.norm("layers.{l}.input_layernorm", Role::AttentionNorm, shape.stream(), AFFINE);
            split_attention(&mut table, &shape, layer_idx, attention_bias);
            table
                .norm("layers.{l}.post_attention_layernorm", Role::MlpNorm, shape.stream(), AFFINE)
                .linear("layers.{l}.mlp.up_proj", Role::Up, neurons.clone(), stream.clone(), mlp_bias)
                .linear("layers.{l}.mlp.down_proj", Role::Down, stream, neurons, mlp_bias);
        }
        table.layer(None).norm("norm", Role::FinalNorm, shape.stream(), AFFINE);
        if !tied {
            table.unprefixed(|t| _ = t.linear("lm_head", Role::Head, fixed(shape.vocab), shape.stream(), false));
        }

        let options = Options {
            norm: NormKind::Layer1p,
            norm_eps: config.number_or("norm_eps", 1e-5)?,
            norm_place: NormPlace::Pre,
            activation: Activation::read(config, "hidden_act", "relu2")?,
            positions: Positions::Rotary(Rotary::read(config, &shape, 0.5)?),
            causal: true,
            head_dim: shape.head_dim,
            max_positions: shape.max_positions,
            vocab: shape.vocab,
            tied,
            output: Output::Logits,
            initializer_range: config.number_or("initializer_range", 0.0134)?,
        };
        let mut blueprint = Blueprint::new("nemotron", config, shape.dims(&ShapeKeys::USUAL), table.finish(), options)?;
        // Left out, it would be derived from the student's own width.
        blueprint.pinned.push(("head_dim".to_owned(), shape.head_dim.into()));
        Ok(blueprint)
    }

    fn client_limits(&self, blueprint: &Blueprint, sizes: &Sizes) -> Vec<ClientLimit> {
        let limit = |width: usize| {
            let hidden = blueprint.size_at(HIDDEN, sizes);
            ClientLimit::new(
                "llama.cpp",
                format!(
                    "its converter takes this Nemotron, but the file does not load: heads x head_dim is {width}, hidden \
                     {hidden}; keep them equal with --square"
                ),
            )
        };
        blueprint.attention_width_beside_hidden(sizes).map(limit).into_iter().collect()
    }
}

minitron_core::plugin! {
    Architecture for Nemotron {
        tag: "nemotron",
        summary: "Nemotron-3 and -4 and Minitron (squared ReLU, layer norm 1p, partial rotary, grouped queries)",
        source: "arXiv 2402.16819, arXiv 2407.14679",
    }
}
