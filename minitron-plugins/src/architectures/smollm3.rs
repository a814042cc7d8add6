use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    CheckpointInfo, ClientLimit, ModelSpec, Norm, NormKind, RotaryDefaults, ShapeKeys, Sizes,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clients::{llama_cpp_counts_layers, of_narrower_heads};

/// SmolLM3: Llama's blocks, of which every fourth turns nothing.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smollm3 {}

#[typetag::serde(name = "smollm3")]
impl Architecture for Smollm3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("smollm3")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1e-6)?,
        };
        let defaults = json!({ "max_position_embeddings": 32_768, "num_key_value_heads": 4,
            "tie_word_embeddings": true });
        let mut decoder = Decoder::new("smollm3", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.stated_biases()?;
        decoder.rotate(RotaryDefaults {
            theta: 2e6,
            ..RotaryDefaults::default()
        })?;
        let turns = turns(&decoder)?;
        decoder.attention(|layer, attention| {
            if turns.get(layer) == Some(&false) {
                attention.rotary = None;
            }
        });
        decoder.by_layer(
            "no_rope_layers",
            turns
                .iter()
                .map(|&turns| Value::from(u8::from(turns)))
                .collect(),
        );
        let slides = decoder.config.flag_or("use_sliding_window", false)?;
        let window = decoder
            .config
            .size_opt("sliding_window")?
            .filter(|_| slides);
        decoder.sliding(window, |layer| {
            window.is_some() && turns.get(layer) == Some(&false)
        })?;
        decoder.reads = &[
            "no_rope_layers",
            "no_rope_layer_interval",
            "sliding_window",
            "layer_types",
        ];
        decoder.finish(evidence)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let what = ("no_rope_layers", "one layer in 4 for one without rope");
        let order = llama_cpp_counts_layers(spec, sizes, what, |layer| {
            u8::from(!(layer + 1).is_multiple_of(4)).into()
        });
        order
            .into_iter()
            .chain(of_narrower_heads(spec, sizes))
            .collect()
    }
}

/// Which layers turn queries and keys: those with a 1 in `no_rope_layers`, or all but every
/// `no_rope_layer_interval`-th.
fn turns(decoder: &Decoder) -> Result<Vec<bool>> {
    let (config, n_layers) = (&decoder.config, decoder.shape.n_layers);
    let interval = config.size_or("no_rope_layer_interval", 4)?;
    let Some(list) = config.list("no_rope_layers")? else {
        return Ok((0..n_layers)
            .map(|layer| !(layer + 1).is_multiple_of(interval))
            .collect());
    };
    if list.len() != n_layers {
        let found = list.len();
        return Err(config.error(format!(
            "`no_rope_layers`: expected {n_layers} entries, one for a layer, got {found}"
        )));
    }
    Ok(list
        .iter()
        .map(|entry| entry.as_u64() != Some(0) && entry.as_bool() != Some(false))
        .collect())
}

minitron_core::plugin! {
    Architecture for Smollm3 {
        tag: "smollm3",
        summary: "SmolLM3 (layers without positions)",
        source: "transformers, models/smollm3",
    }
}
