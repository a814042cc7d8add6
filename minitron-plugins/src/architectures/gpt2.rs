use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Attention, Gate, Layout, Mlp};
use minitron_core::spec::{
    Activation, CheckpointInfo, ClientLimit, Constraint, Embedding, HIDDEN, Head, Layer, MLP,
    ModelSpec, Norm, NormKind, Options, ParamKind, Role, Shape, ShapeKeys, Side, Sizes, Sublayer,
    Table, fixed,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// GPT-2: queries, keys and values in one transposed matrix, learned positions.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpt2 {}

const KEYS: ShapeKeys = ShapeKeys {
    hidden: "n_embd",
    mlp: "n_inner",
    heads: "n_head",
    kv_heads: None,
    head_dim: None,
    depth: "n_layer",
    positions: "n_positions",
};

const AFFINE: (&str, Option<&str>) = ("weight", Some("bias"));

#[typetag::serde(name = "gpt2")]
impl Architecture for Gpt2 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gpt2")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        config.only("scale_attn_weights", true)?;
        config.only("scale_attn_by_inverse_layer_idx", false)?;
        config.only("reorder_and_upcast_attn", false)?;
        config.only("add_cross_attention", false)?;
        let shape = Shape::read(config, &KEYS, Some(4 * config.size("n_embd")?), Some(1024))?;
        let tied = config.flag_or("tie_word_embeddings", true)?;

        // Saved from the bare model, names have no prefix; the published GPT-2 is such a file.
        let is_prefixed = evidence.has("transformer.wte.weight", true);
        let mut table = Table::new(if is_prefixed { "transformer." } else { "" });
        table.tensor(
            "wte.weight",
            Role::TOKEN_EMBEDDING,
            ParamKind::Weight,
            vec![fixed(shape.vocab), shape.stream()],
        );
        if tied {
            table.also_known_as(&["lm_head.weight"]);
        }
        let position_sides = vec![fixed(shape.max_positions), shape.stream()];
        table.tensor(
            "wpe.weight",
            Role::POSITION_EMBEDDING,
            ParamKind::Weight,
            position_sides,
        );
        for layer_idx in 0..shape.n_layers {
            let (stream, neurons, heads) = (
                shape.stream(),
                shape.neurons(layer_idx),
                shape.queries(layer_idx),
            );
            let fused = Side([heads.0.clone(), heads.0.clone(), heads.0.clone()].concat());
            table
                .part(layer_idx, 0)
                .norm("h.{l}.ln_1", Role::INPUT_NORM, shape.stream(), AFFINE)
                .conv1d(
                    "h.{l}.attn.c_attn",
                    Role::QUERY_KEY_VALUE,
                    fused,
                    stream.clone(),
                )
                .conv1d(
                    "h.{l}.attn.c_proj",
                    Role::ATTENTION_OUTPUT,
                    stream.clone(),
                    heads,
                )
                .part(layer_idx, 1)
                .norm("h.{l}.ln_2", Role::INPUT_NORM, shape.stream(), AFFINE)
                .conv1d("h.{l}.mlp.c_fc", Role::UP, neurons.clone(), stream.clone())
                .conv1d("h.{l}.mlp.c_proj", Role::DOWN, stream, neurons);
        }
        table
            .around()
            .norm("ln_f", Role::FINAL_NORM, shape.stream(), AFFINE);
        if !tied {
            table.unprefixed(|t| {
                _ = t.linear(
                    "lm_head",
                    Role::HEAD,
                    fixed(shape.vocab),
                    shape.stream(),
                    false,
                )
            });
        }

        let norm = Norm {
            kind: NormKind::Layer,
            eps: config.number_or("layer_norm_epsilon", 1e-5)?,
        };
        let attention = Attention {
            layout: Layout::Fused,
            ..Attention::new(shape.head_dim)
        };
        let activation = Activation::read(config, "activation_function", "gelu_new")?;
        let layer = Layer(vec![
            Sublayer::new(attention).pre(norm),
            Sublayer::new(Mlp {
                activation,
                gate: Gate::None,
            })
            .pre(norm),
        ]);
        let options = Options {
            causal: true,
            max_positions: shape.max_positions,
            vocab: shape.vocab,
            tied,
            embedding: Embedding::default(),
            final_norm: Some(norm),
            head: Some(Head::default()),
            initializer_range: config.number_or("initializer_range", 0.02)?,
        };
        let layers = vec![layer; shape.n_layers];
        let mut spec = ModelSpec::new(
            "gpt2",
            config,
            shape.dims(&KEYS),
            table.finish(),
            layers,
            options,
        )?;
        spec.constraints
            .push(Constraint::no_head_dim(shape.head_dim));
        spec.buffers = &[".attn.bias", ".attn.masked_bias"];
        Ok(spec)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let (hidden, mlp) = (spec.size_at(HIDDEN, sizes), spec.size_at(MLP, sizes));
        let limit = || {
            ClientLimit::new(
                "llama.cpp",
                format!(
                    "its converter takes mlp for 4 x hidden ({}), so the file does not load; write \
                     the right one into it: \
                     gguf_set_metadata.py --force FILE.gguf gpt2.feed_forward_length {mlp}",
                    hidden.saturating_mul(4)
                ),
            )
        };
        (mlp != hidden.saturating_mul(4))
            .then(limit)
            .into_iter()
            .collect()
    }
}

minitron_core::plugin! {
    Architecture for Gpt2 {
        tag: "gpt2",
        summary: "GPT-2 in all sizes, with or without the prefix of its language model",
        source: "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    }
}
