use minitron_core::blueprint::{
    Activation, Blueprint, DEPTH, Dim, Evidence, HEADS, HIDDEN, KV_HEADS, MLP, NormKind, NormPlace, Options, Output,
    Positions, Role, Rotary, RotaryScaling, Slot, Table, dim_of_layer, fixed, units,
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
        config.model_type().is_ok_and(|found| found == "qwen2")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let config = evidence.config;
        if config.flag_or("use_sliding_window", false)? {
            return Err(config.error("`use_sliding_window`: expected false; windows are not supported"));
        }
        let sizes = Sizes::read(config)?;
        let tied = config.flag_or("tie_word_embeddings", false)?;
        let tensors = tensors(&sizes, tied);
        let nested = config.nested("rope_parameters")?;
        let theta = nested.as_ref().unwrap_or(config).number_or("rope_theta", 10_000.0)?;
        let options = Options {
            norm: NormKind::Rms,
            norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
            norm_place: NormPlace::Pre,
            activation: Activation::parse(config.word_or("hidden_act", "silu")?)?,
            positions: Positions::Rotary(Rotary { theta, n_rotated: sizes.head_dim, scaling: RotaryScaling::None }),
            causal: true,
            head_dim: sizes.head_dim,
            max_positions: config.size_or("max_position_embeddings", 32_768)?,
            vocab: sizes.vocab,
            tied,
            output: Output::Logits,
            initializer_range: config.number_or("initializer_range", 0.02)?,
        };
        let mut blueprint = Blueprint::new("qwen2", config, sizes.dims(), tensors, options)?;
        // Left out, `transformers` derives it from the student's own width.
        blueprint.pinned.push(("head_dim".to_owned(), sizes.head_dim.into()));
        Ok(blueprint)
    }
}

struct Sizes {
    hidden: usize,
    mlp: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    n_layers: usize,
    vocab: usize,
}

impl Sizes {
    fn read(config: &Config) -> Result<Self> {
        let (hidden, n_heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        let n_kv_heads = config.size_or("num_key_value_heads", n_heads)?;
        let head_dim = match config.size_opt("head_dim")? {
            Some(head_dim) => head_dim,
            None => hidden.checked_div(n_heads).unwrap_or(0),
        };
        if n_heads == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) || head_dim == 0 {
            return Err(config.error(format!("{n_heads} heads of {head_dim} channels in {n_kv_heads} groups")));
        }
        let (mlp, n_layers) = (config.size("intermediate_size")?, config.size("num_hidden_layers")?);
        Ok(Sizes { hidden, mlp, n_heads, n_kv_heads, head_dim, n_layers, vocab: config.size("vocab_size")? })
    }

    /// Every named size, and the keys of the config that state it.
    fn dims(&self) -> Vec<Dim> {
        let mut dims = vec![
            Dim::new(HIDDEN, self.hidden, &["hidden_size"]).multiple_of(8),
            Dim::new(DEPTH, self.n_layers, &["num_hidden_layers"]),
        ];
        for layer in 0..self.n_layers {
            let of = |kind| dim_of_layer(kind, layer);
            dims.push(Dim::new(of(MLP), self.mlp, &["intermediate_size"]).multiple_of(4));
            let heads = &["num_attention_heads"];
            if self.is_grouped() {
                dims.push(Dim::new(of(HEADS), self.n_heads, heads).partition(of(KV_HEADS)));
                dims.push(Dim::new(of(KV_HEADS), self.n_kv_heads, &["num_key_value_heads"]));
            } else {
                dims.push(Dim::new(of(HEADS), self.n_heads, &["num_attention_heads", "num_key_value_heads"]));
            }
        }
        dims
    }

    fn is_grouped(&self) -> bool {
        self.n_kv_heads < self.n_heads
    }
}

fn tensors(sizes: &Sizes, tied: bool) -> Vec<minitron_core::blueprint::TensorSpec> {
    let stream = || units(HIDDEN, 1);
    let mut table = Table::new("model.");
    table.tensor("embed_tokens.weight", Role::TokenEmbedding, Slot::Weight, vec![fixed(sizes.vocab), stream()]);
    if tied {
        table.also_known_as(&["lm_head.weight"]);
    }
    for layer in 0..sizes.n_layers {
        let of = |kind| dim_of_layer(kind, layer);
        let queries = || units(of(HEADS), sizes.head_dim);
        let keys = || units(of(if sizes.is_grouped() { KV_HEADS } else { HEADS }), sizes.head_dim);
        let neurons = || units(of(MLP), 1);
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
        table.unprefixed(|t| _ = t.linear("lm_head", Role::Head, fixed(sizes.vocab), stream(), false));
    }
    table.finish()
}
