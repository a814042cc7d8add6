use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Attention, Gate, Layout, Mlp};
use minitron_core::spec::{
    Activation, CheckpointInfo, ClientLimit, Constraint, Embedding, HIDDEN, Head, Layer, MLP,
    ModelSpec, Norm, NormKind, Options, Param, ParamKind, Role, Shape, ShapeKeys, Side, Sizes,
    Sublayer, Table, fixed,
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
        let norm = Norm {
            kind: NormKind::Layer,
            eps: config.number_or("layer_norm_epsilon", 1e-5)?,
        };
        let attention = Attention {
            layout: Layout::Fused,
            ..Attention::new(shape.head_dim)
        };
        let mlp = Mlp {
            activation: Activation::read(config, "activation_function", "gelu_new")?,
            gate: Gate::None,
        };
        let layer = Layer(vec![
            Sublayer::new(attention).pre(norm),
            Sublayer::new(mlp).pre(norm),
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
        let (dims, layers) = (shape.dims(&KEYS), vec![layer; shape.n_layers]);
        let rows = rows(evidence, &shape, tied);
        let mut spec = ModelSpec::new("gpt2", config, dims, rows, layers, options)?;
        spec.constraints
            .push(Constraint::no_head_dim(shape.head_dim));
        spec.buffers = &[".attn.bias", ".attn.masked_bias"];
        Ok(spec)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let mlp = spec.size_at(MLP, sizes);
        let taken = spec.size_at(HIDDEN, sizes).saturating_mul(4);
        if mlp == taken {
            return Vec::new();
        }
        let message = format!(
            "its converter takes mlp for 4 x hidden ({taken}), so the file does not load; write \
             the right one into it: gguf_set_metadata.py --force FILE.gguf \
             gpt2.feed_forward_length {mlp}"
        );
        vec![ClientLimit::new("llama.cpp", message)]
    }
}

fn rows(evidence: &CheckpointInfo, shape: &Shape, tied: bool) -> Vec<Param> {
    // Saved from the bare model, names have no prefix; the published GPT-2 is such a file.
    let is_prefixed = evidence.has("transformer.wte.weight", true);
    let mut table = Table::new(if is_prefixed { "transformer." } else { "" });
    let stream = shape.stream();
    let role = Role::TOKEN_EMBEDDING;
    let sides = vec![fixed(shape.vocab), stream.clone()];
    table.tensor("wte.weight", role, ParamKind::Weight, sides);
    if tied {
        table.also_known_as(&["lm_head.weight"]);
    }
    let role = Role::POSITION_EMBEDDING;
    let sides = vec![fixed(shape.max_positions), stream.clone()];
    table.tensor("wpe.weight", role, ParamKind::Weight, sides);
    for layer in 0..shape.n_layers {
        layer_rows(&mut table, shape, layer);
    }
    table
        .around()
        .norm("ln_f", Role::FINAL_NORM, stream.clone(), AFFINE);
    if !tied {
        table.unprefixed(|table| {
            table.linear("lm_head", Role::HEAD, fixed(shape.vocab), stream, false);
        });
    }
    table.finish()
}

fn layer_rows(table: &mut Table, shape: &Shape, layer: usize) {
    let (stream, neurons, heads) = (shape.stream(), shape.neurons(layer), shape.queries(layer));
    let fused = Side([heads.0.clone(), heads.0.clone(), heads.0.clone()].concat());
    let (input, output) = (Role::QUERY_KEY_VALUE, Role::ATTENTION_OUTPUT);
    let norm = Role::INPUT_NORM;
    table
        .part(layer, 0)
        .norm("h.{l}.ln_1", norm, stream.clone(), AFFINE)
        .conv1d("h.{l}.attn.c_attn", input, fused, stream.clone())
        .conv1d("h.{l}.attn.c_proj", output, stream.clone(), heads)
        .part(layer, 1)
        .norm("h.{l}.ln_2", norm, stream.clone(), AFFINE)
        .conv1d("h.{l}.mlp.c_fc", Role::UP, neurons.clone(), stream.clone())
        .conv1d("h.{l}.mlp.c_proj", Role::DOWN, stream, neurons);
}

minitron_core::plugin! {
    Architecture for Gpt2 {
        tag: "gpt2",
        summary: "GPT-2 in all sizes, with or without the prefix of its language model",
        source: "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    }
}
