use minitron_core::architectures::{Block, Decoder, MambaKeys, MambaShape, Names};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{MAMBA_HEAD_DIM, MAMBA_HEADS, Mamba2};
use minitron_core::spec::{
    CheckpointInfo, ConfigKey, Constraint, HIDDEN, ModelSpec, Norm, NormKind, PatternForm,
    RotaryDefaults, ShapeKeys,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bamba: Mamba 2 in most layers, attention that turns half of a head in some, a gated MLP in all.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bamba {}

const NAMES: Names = Names {
    gate: "feed_forward.gate_proj",
    up: "feed_forward.up_proj",
    down: "feed_forward.down_proj",
    pre_norms: ["input_layernorm", "pre_ff_layernorm"],
    final_norm: "final_layernorm",
    ..Names::USUAL
};

const MAMBA_KEYS: MambaKeys = MambaKeys {
    heads: "mamba_n_heads",
    head_dim: "mamba_d_head",
    groups: "mamba_n_groups",
};

/// The layers that are attention.
const ATTENTION: &str = "attn_layer_indices";

const WHY_EXPANDED: &str =
    "this family's config class wants mamba heads x channels to be mamba_expand x hidden";

#[typetag::serde(name = "bamba")]
impl Architecture for Bamba {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("bamba")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        // Beside the parameters of the rotation, its class says half whatever stands there.
        let mut config = evidence.config.clone();
        config.remove("partial_rotary_factor");
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-5)?,
        };
        let defaults = json!({ "max_position_embeddings": 262_144, "num_key_value_heads": 8,
            "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 128_000, "mamba_n_heads": 128,
            "mamba_n_groups": 1, "mamba_expand": 2 });
        let mut decoder = Decoder::new("bamba", &config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.names = NAMES;
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults {
            partial: 0.5,
            ..RotaryDefaults::default()
        })?;
        let attends = attends(&decoder)?;
        decoder.blocks = attends.iter().map(|&attends| blocks(attends)).collect();
        let values = attends.into_iter().map(Value::Bool).collect();
        let form = PatternForm::Indices;
        decoder.patterns = vec![ConfigKey::pattern_as(form, ATTENTION, values)];
        let (mamba, expand) = mamba(&decoder, norm)?;
        decoder.constraints = constraints(&mamba, expand);
        decoder.mamba = Some(mamba);
        decoder.reads = &["partial_rotary_factor"];
        decoder.finish(evidence)
    }
}

fn blocks(attends: bool) -> Vec<Block> {
    let first = if attends {
        Block::Attention
    } else {
        Block::Mamba
    };
    vec![first, Block::Mlp]
}

/// Which layers are attention.
fn attends(decoder: &Decoder) -> Result<Vec<bool>> {
    let (config, n_layers) = (&decoder.config, decoder.shape.n_layers);
    let mut attends = vec![false; n_layers];
    for entry in config.list(ATTENTION)?.into_iter().flatten() {
        let layer = entry.as_u64().map(|layer| layer as usize);
        let Some(attends) = layer.and_then(|layer| attends.get_mut(layer)) else {
            return Err(config.error(format!(
                "`{ATTENTION}`: expected layers from 0 to {}, got {entry}; correct config.json",
                n_layers.saturating_sub(1)
            )));
        };
        *attends = true;
    }
    Ok(attends)
}

/// The mixers, and how many channels of theirs there are for one of the stream.
fn mamba(decoder: &Decoder, norm: Norm) -> Result<(MambaShape, usize)> {
    let (config, hidden) = (&decoder.config, decoder.shape.hidden);
    let (n_heads, expand) = (config.size("mamba_n_heads")?, config.size("mamba_expand")?);
    let inner = expand.saturating_mul(hidden);
    let head_dim = match config.get(MAMBA_KEYS.head_dim).and_then(Value::as_str) {
        Some("auto") => inner / n_heads,
        _ => config.size_or(MAMBA_KEYS.head_dim, inner / n_heads)?,
    };
    if head_dim.saturating_mul(n_heads) != inner {
        return Err(config.error(format!(
            "{WHY_EXPANDED}, got {n_heads} x {head_dim} and {expand} x {hidden}; correct \
             `mamba_n_heads`, `mamba_d_head` or `mamba_expand`"
        )));
    }
    let state_size = config.size_or("mamba_d_state", 256)?;
    let chunk = config.size_or("mamba_chunk_size", 256)?;
    let shape = MambaShape {
        mixer: Mamba2 {
            head_dim,
            state_size,
            taps: config.size_or("mamba_d_conv", 4)?,
            chunk: Mamba2::chunk(chunk, head_dim, state_size),
            steps: steps(config)?,
            eps: norm.eps,
            activation: decoder.mlp.activation,
        },
        n_heads,
        n_groups: config.size("mamba_n_groups")?,
        keys: MAMBA_KEYS,
        bias: config.flag_or("mamba_proj_bias", false)?,
        convolution_bias: config.flag_or("mamba_conv_bias", true)?,
        name: "mamba",
    };
    Ok((shape.checked(config)?, expand))
}

/// Bounds of a step; JSON has no word for an infinite one, so whatever is no number is that.
fn steps(config: &Config) -> Result<(f64, f64)> {
    let list = config.list("time_step_limit")?;
    let bound = |idx: usize| list.and_then(|list| list.get(idx)?.as_f64());
    Ok((bound(0).unwrap_or(0.0), bound(1).unwrap_or(f64::INFINITY)))
}

/// Heads and the stream shrink together; channels of a head would need a third size to follow.
fn constraints(mamba: &MambaShape, expand: usize) -> Vec<Constraint> {
    let head_dim = mamba.mixer.head_dim;
    let mut constraints = vec![Constraint::held(MAMBA_HEAD_DIM, WHY_EXPANDED)];
    if head_dim.is_multiple_of(expand) {
        constraints.push(Constraint::Product {
            of: HIDDEN.to_owned(),
            by: MAMBA_HEADS.to_owned(),
            times: head_dim / expand,
            why: WHY_EXPANDED,
        });
    } else {
        constraints.extend([HIDDEN, MAMBA_HEADS].map(|kind| Constraint::held(kind, WHY_EXPANDED)));
    }
    constraints
}

minitron_core::plugin! {
    Architecture for Bamba {
        tag: "bamba",
        summary: "Bamba (Mamba 2 or attention with partial rotary, then a gated MLP)",
        source: "transformers, models/bamba",
    }
}
