use minitron_core::architectures::{Block, Decoder, LayerSizes};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ConfigKey, Constraint, Dim, EntryForm, HEADS, HIDDEN, KV_HEADS,
    MLP, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes, dim_of_layer, split_dim,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clients::{LLAMA_CPP, VLLM, of_narrower_heads};

mod blocks;

use blocks::{Blocks, KEY, STEP};

/// DeciLM (Llama-Nemotron 51B, 49B and 253B): Llama's blocks, of which each has a width and
/// key/value heads of its own, and some have no attention or no MLP.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Decilm {}

/// The published name first.
const MODEL_TYPES: [&str; 3] = ["nemotron-nas", "deci", "decilm"];

#[typetag::serde(name = "decilm")]
impl Architecture for Decilm {
    fn recognises(&self, config: &Config) -> bool {
        MODEL_TYPES.iter().any(|known| config.is_type(known))
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let blocks = Blocks::read(evidence.config)?;
        let apart = sizes(&blocks);
        let norm = Norm {
            kind: NormKind::Rms,
            eps: evidence.config.number_or("rms_norm_eps", 1e-6)?,
        };
        // Its class reads them of each layer alone.
        let mut config = evidence.config.clone();
        config.set("intermediate_size", widest(&apart.mlp));
        config.set("num_key_value_heads", config.size("num_attention_heads")?);
        let defaults = json!({ "max_position_embeddings": 2048 });
        let mut decoder = Decoder::new("decilm", &config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.shape.n_kv_heads = widest(&apart.kv_heads);
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults::default())?;
        decoder.blocks = blocks.sizes.iter().map(parts).collect();
        decoder.apart = Some(apart);
        decoder.states = Some(stated);
        decoder.patterns = vec![ConfigKey::pattern(KEY, blocks.entries)];
        // Its config class is Llama's.
        decoder.constraints.push(Constraint::heads_divide_hidden());
        decoder.buffers = &["rotary_emb.inv_freq"];
        decoder.reads = &["partial_rotary_factor", "architectures"];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let mut limits = vec![ClientLimit::new("transformers", NO_CLASS)];
        limits.extend(odd_width(spec, sizes));
        if let Some(width) = spec.attention_width_beside_hidden(sizes) {
            let hidden = spec.size_at(HIDDEN, sizes);
            let message = format!(
                "the file does not load: it takes hidden / heads for head_dim, heads x head_dim is \
                 {width}, hidden {hidden}; keep them equal with --square"
            );
            limits.push(ClientLimit::new(LLAMA_CPP, message));
        }
        limits.extend(of_narrower_heads(spec, sizes));
        limits.extend(begins_without_attention(spec, sizes));
        limits.extend(attends_without_mlp(spec, sizes));
        limits
    }
}

const NO_CLASS: &str = "\
    this is a DeciLM, whose layers differ, and it has no class for it: load the folder with \
    llama.cpp or vLLM, or put the code of a published DeciLM beside it (auto_map, \
    trust_remote_code), from which vLLM takes the class of the config, too";

fn sizes(blocks: &Blocks) -> LayerSizes {
    let mut sizes = LayerSizes::default();
    for block in &blocks.sizes {
        // Of a part that is not there, nobody asks.
        sizes.mlp.push(block.mlp.unwrap_or(1));
        sizes.kv_heads.push(block.kv_heads.unwrap_or(1));
    }
    sizes
}

fn widest(sizes: &[usize]) -> usize {
    sizes.iter().copied().max().unwrap_or(1)
}

fn parts(block: &blocks::BlockSizes) -> Vec<Block> {
    let there = [(block.kv_heads, Block::Attention), (block.mlp, Block::Mlp)];
    let parts = there.map(|(size, part)| size.map_or(Block::Absent, |_| part));
    parts.to_vec()
}

/// Where the entries of `block_configs` state a layer's sizes.
fn stated(dim: Dim) -> Dim {
    let entry = |inside, form| ConfigKey::entry(KEY, inside, form);
    let groups = entry(
        "attention.n_heads_in_group",
        EntryForm::Share {
            of: HEADS,
            per: KV_HEADS,
        },
    );
    let multiplier = EntryForm::Multiplier {
        of: HIDDEN,
        times: 3,
        over: 2,
        step: STEP,
    };
    let keys = match split_dim(&dim.name).0 {
        MLP => vec![
            entry("ffn.ffn_mult", multiplier),
            entry("ffn.intermediate_size", EntryForm::Size),
            entry("ffn.no_op", EntryForm::IsAbsent),
        ],
        HEADS => vec![
            ConfigKey::scalar("num_attention_heads"),
            entry("attention.no_op", EntryForm::IsAbsent),
            groups,
        ],
        KV_HEADS => vec![groups],
        _ => return dim,
    };
    dim.stated(keys).optional()
}

/// Of llama.cpp, which knows widths by the multiplier alone.
fn odd_width(spec: &ModelSpec, sizes: &Sizes) -> Option<ClientLimit> {
    let mut widths = spec.sizes_at(MLP, sizes);
    let width = widths.find(|width| !width.is_multiple_of(STEP))?;
    let message = format!(
        "it takes MLPs whose width is a multiple of {STEP} alone, one is {width} wide; plan with \
         --axis mlp:multiple_of={STEP}"
    );
    Some(ClientLimit::new(LLAMA_CPP, message))
}

/// Of vLLM, where a first layer without attention leaves it without a residual.
fn begins_without_attention(spec: &ModelSpec, sizes: &Sizes) -> Option<ClientLimit> {
    let message = "it fails where the first layer has no attention; keep heads.0";
    let has_attention = has_part(spec, 0, (0, HEADS), sizes);
    (!has_attention).then(|| ClientLimit::new(VLLM, message))
}

/// Of llama.cpp, which passes over the attention of a layer without an MLP, and says nothing.
fn attends_without_mlp(spec: &ModelSpec, sizes: &Sizes) -> Option<ClientLimit> {
    let mut layers = 0..spec.n_layers();
    let layer = layers.find(|&layer| {
        has_part(spec, layer, (0, HEADS), sizes) && !has_part(spec, layer, (1, MLP), sizes)
    })?;
    let message = format!(
        "its numbers are wrong where a layer has attention and no MLP, as layer {layer}: it leaves \
         that attention out; keep some of mlp.{layer}, or let heads.{layer} go too"
    );
    Some(ClientLimit::new(LLAMA_CPP, message))
}

/// Whether a layer has a part at these sizes: its place, and the kind that measures it.
fn has_part(spec: &ModelSpec, layer: usize, (place, kind): (usize, &str), sizes: &Sizes) -> bool {
    let part = spec.places(layer).nth(place);
    let is_there = part.is_some_and(|(_, part)| !part.mixer.is_absent());
    is_there && sizes.get(&dim_of_layer(kind, layer)) != Some(&0)
}

/// The config of a model with Llama's blocks in this family's words; none where it lacks a size.
pub(super) fn of_llama(config: &Config) -> Option<Config> {
    let (n_heads, n_layers) = (
        config.size("num_attention_heads").ok()?,
        config.size("num_hidden_layers").ok()?,
    );
    let (hidden, width) = (
        config.size("hidden_size").ok()?,
        config.size("intermediate_size").ok()?,
    );
    let n_kv_heads = config.size_or("num_key_value_heads", n_heads).ok()?;
    let mut ffn = json!({
        "intermediate_size": width, "no_op": false, "replace_with_linear": false,
    });
    if width.is_multiple_of(STEP) {
        ffn["ffn_mult"] = json!(3.0 * width as f64 / (2.0 * hidden as f64));
    }
    let attention = json!({
        "n_heads_in_group": n_heads / n_kv_heads, "no_op": false, "replace_with_linear": false,
    });
    let block = json!({ "attention": attention, "ffn": ffn });
    let mut apart = config.clone();
    apart.set("model_type", MODEL_TYPES[0]);
    apart.set("architectures", json!(["DeciLMForCausalLM"]));
    apart.set("intermediate_size", Value::Null);
    apart.set("num_key_value_heads", Value::Null);
    apart.set(KEY, vec![block; n_layers]);
    Some(apart)
}

minitron_core::plugin! {
    Architecture for Decilm {
        tag: "decilm",
        summary: "DeciLM (Llama's blocks, each with its own width, some without attention or MLP)",
        source: "arXiv 2411.19146, arXiv 2505.00949",
    }
}
