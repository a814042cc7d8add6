use minitron_core::architectures::{Block, Decoder, MambaKeys, MambaShape, Names};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Gate, Mamba2, Mlp};
use minitron_core::spec::{
    Activation, CheckpointInfo, ConfigKey, ModelSpec, Norm, NormKind, PatternForm, ShapeKeys,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod experts;

use experts::experts;

/// Nemotron-H, Nemotron Nano 2 and Nemotron 3 Nano: one mixer a layer, which is Mamba 2, attention
/// without positions, an MLP of squared ReLU, or experts of such.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NemotronH {}

const NAMES: Names = Names {
    prefix: "backbone.",
    tokens: "embeddings",
    query: "mixer.q_proj",
    key: "mixer.k_proj",
    value: "mixer.v_proj",
    attention_output: "mixer.o_proj",
    up: "mixer.up_proj",
    down: "mixer.down_proj",
    pre_norms: ["norm", "norm"],
    final_norm: "norm_f",
    ..Names::USUAL
};

const MAMBA_KEYS: MambaKeys = MambaKeys {
    heads: "mamba_num_heads",
    head_dim: "mamba_head_dim",
    groups: "n_groups",
};

/// Where the config says what layers are: a list of words, under either name, or a word with a
/// letter for each.
const LISTS: [&str; 2] = ["layer_types", "layers_block_type"];
const LETTERS: &str = "hybrid_override_pattern";

#[typetag::serde(name = "nemotron_h")]
impl Architecture for NemotronH {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("nemotron_h")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let patterns = patterns(evidence.config)?;
        let mut blocks = Vec::new();
        for (layer, value) in patterns.values().iter().enumerate() {
            blocks.push(vec![block(evidence.config, layer, value)?]);
        }
        // Its class counts what it finds there.
        let mut config = renamed(evidence.config);
        config.set("num_hidden_layers", blocks.len());
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("layer_norm_epsilon", 1e-5)?,
        };
        let defaults = json!({ "max_position_embeddings": 4096, "head_dim": 128,
            "hidden_size": 4096, "intermediate_size": 21_504, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 131_072, "n_groups": 8,
            "mamba_num_heads": 128, "mamba_head_dim": 64, "conv_kernel": 4 });
        let mut decoder = Decoder::new("nemotron_h", &config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.names = NAMES;
        decoder.blocks = blocks;
        decoder.bias.mlp = decoder.config.flag_or("mlp_bias", false)?;
        decoder.mlp = Mlp {
            activation: Activation::read(&config, "mlp_hidden_act", "relu2")?,
            gate: Gate::None,
        };
        // Whatever the config says, its class ties nothing.
        decoder.tied = false;
        decoder.mamba = Some(mamba(&decoder.config, norm)?);
        let mut all = decoder.blocks.iter().flatten();
        if all.any(|&block| block == Block::Experts) {
            decoder.experts = Some(experts(&decoder)?);
        }
        decoder.patterns = patterns.0;
        decoder.reads = &[
            "layer_types",
            "num_local_experts",
            "n_routed_experts",
            "sliding_window",
        ];
        decoder.finish(evidence)
    }
}

/// What the config says of each layer, in each form that it has; a class without either has four
/// layers.
struct Patterns(Vec<ConfigKey>);

impl Patterns {
    /// Its words or letters.
    fn values(&self) -> &[Value] {
        match self.0.first() {
            Some(ConfigKey::Pattern { values, .. }) => values,
            _ => &[],
        }
    }
}

fn patterns(config: &Config) -> Result<Patterns> {
    let mut found = Vec::new();
    for key in LISTS {
        if let Some(list) = config.list(key)? {
            found.push(ConfigKey::pattern(key, list.clone()));
        }
    }
    let letters = config.word_or(LETTERS, "")?;
    if !letters.is_empty() {
        let values = letters.chars().map(|letter| letter.to_string().into());
        let form = PatternForm::Letters;
        found.push(ConfigKey::pattern_as(form, LETTERS, values.collect()));
    }
    if found.is_empty() {
        let message = format!(
            "expected `{}` or `{LETTERS}`, which say what each layer is; add the one that the \
             model was trained with",
            LISTS[1]
        );
        return Err(config.error(message));
    }
    Ok(Patterns(found))
}

fn block(config: &Config, layer: usize, value: &Value) -> Result<Block> {
    match value.as_str().unwrap_or_default() {
        "M" | "mamba" | "linear_attention" => Ok(Block::Mamba),
        "*" | "attention" | "full_attention" => Ok(Block::Attention),
        "-" | "mlp" => Ok(Block::Mlp),
        "E" | "moe" => Ok(Block::Experts),
        _ => Err(config.error(format!(
            "layer {layer}: expected mamba (M), attention (*), mlp (-) or moe (E), got {value}; \
             correct `{}` or `{LETTERS}`",
            LISTS[1]
        ))),
    }
}

/// The same config with keys under the names that its class stores them by.
fn renamed(config: &Config) -> Config {
    let mut renamed = config.clone();
    for (other, own) in [
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_dt_min", "time_step_min"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_chunk_size", "chunk_size"),
    ] {
        if let Some(value) = config.get(other) {
            renamed.set(own, value.clone());
        }
    }
    renamed
}

fn mamba(config: &Config, norm: Norm) -> Result<MambaShape> {
    let head_dim = config.size("mamba_head_dim")?;
    let state_size = config.size_or("ssm_state_size", 128)?;
    let chunk = config.size_or("chunk_size", 128)?;
    let shape = MambaShape {
        mixer: Mamba2 {
            head_dim,
            state_size,
            taps: config.size("conv_kernel")?,
            chunk: Mamba2::chunk(chunk, head_dim, state_size),
            steps: (config.number_or("time_step_min", 0.001)?, f64::INFINITY),
            eps: norm.eps,
            activation: Activation::read(config, "mamba_hidden_act", "silu")?,
        },
        n_heads: config.size("mamba_num_heads")?,
        n_groups: config.size("n_groups")?,
        keys: MAMBA_KEYS,
        bias: config.flag_or("use_bias", false)?,
        convolution_bias: config.flag_or("use_conv_bias", true)?,
        name: "mixer",
    };
    shape.checked(config)
}

minitron_core::plugin! {
    Architecture for NemotronH {
        tag: "nemotron_h",
        summary: "Nemotron-H, Nemotron Nano 2 and Nemotron 3 Nano (Mamba 2, attention, MLP or \
                  experts in each layer)",
        source: "arXiv 2504.03624, arXiv 2508.14444",
    }
}
