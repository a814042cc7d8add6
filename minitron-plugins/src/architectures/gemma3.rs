<<<<<<< HEAD
use minitron_core::blueprint::{Blueprint, Evidence};
=======
use minitron_core::blueprint::{Blueprint, ClientLimit, Decoder, Evidence, Rotary, RotaryDefaults, Sizes};
>>>>>>> sizes
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

<<<<<<< HEAD
use super::gemma3_text::decoder;
=======
use super::gemma2::{blocks, limits};

/// Gemma 3, text: norms of queries and keys, two rotations, five layers with a window to one without.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gemma3Text {}

#[typetag::serde(name = "gemma3_text")]
impl Architecture for Gemma3Text {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gemma3_text")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        decoder(evidence.config)?.finish(evidence)
    }

    fn client_limits(&self, blueprint: &Blueprint, sizes: &Sizes) -> Vec<ClientLimit> {
        limits(blueprint, sizes, (6, 62))
    }
}

/// The decoder that a config, or the language part of one, describes.
pub(super) fn decoder(config: &Config) -> Result<Decoder> {
    let defaults = json!({ "vocab_size": 262_208, "max_position_embeddings": 131_072 });
    let mut decoder = blocks("gemma3_text", config, defaults)?;
    decoder.qk_norm(QkNorm::Head);
    let pattern = match decoder.config.size_opt("_sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => decoder.config.size_or("sliding_window_pattern", 6)?,
    };
    let window = decoder.config.size_opt("sliding_window")?;
    let slides = decoder.sliding(window, |layer| (layer + 1) % pattern != 0)?;
    let far = RotaryDefaults { theta: 1e6, ..RotaryDefaults::default() };
    // Older configs state one base for all layers, which is that of layers without a window.
    let near = RotaryDefaults { theta: 1e4, theta_key: "rope_local_base_freq", own_theta: true, ..far };
    let shape = decoder.shape;
    let full = Rotary::of_layer_type(&decoder.config, &shape, "full_attention", true, far)?;
    let sliding = Rotary::of_layer_type(&decoder.config, &shape, "sliding_attention", false, near)?;
    decoder.attention(|layer, attention| {
        let slides = slides.get(layer) == Some(&true);
        attention.rotary = Some(if slides { sliding.clone() } else { full.clone() });
    });
    Ok(decoder)
}
>>>>>>> sizes

/// Gemma 3 with a vision tower: the language model inside is pruned, the rest travels as it is.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gemma3 {}

#[typetag::serde(name = "gemma3")]
impl Architecture for Gemma3 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("gemma3")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let text = text_config(evidence.config)?;
        let names = ("language_model.model.", "language_model.lm_head");
        let mut decoder = decoder(&text)?.inside("gemma3", evidence.config, names, BESIDE)?;
        // The class with the tower never caps its logits.
        decoder.head.softcap = None;
        decoder.finish(evidence)
    }

    fn client_limits(&self, blueprint: &Blueprint, sizes: &Sizes) -> Vec<ClientLimit> {
        limits(blueprint, sizes, (6, 62))
    }
}

const BESIDE: &[&str] = &["vision_tower.", "multi_modal_projector."];

/// The part of a config that describes the language model.
///
/// # Errors
/// `Checkpoint` where there is none.
pub(super) fn text_config(config: &Config) -> Result<Config> {
    config.nested("text_config")?.ok_or_else(|| config.error("no `text_config`; expected the language model's config"))
}

minitron_core::plugin! {
    Architecture for Gemma3 {
        tag: "gemma3",
        summary: "the language model inside a Gemma 3 that sees (the vision tower travels as it is)",
        source: "arXiv 2503.19786",
    }
}
