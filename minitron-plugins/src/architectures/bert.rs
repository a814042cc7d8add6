use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    Activation, CheckpointInfo, ModelSpec, Norm, NormKind, Shape, ShapeKeys,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::encoder::{Encoder, EncoderNames, class};

/// BERT encoders: norms after the sums, learned positions and segments, a masked-language head
/// where the file has one.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bert {}

/// Without a key for `head_dim`, as all families of this kind.
pub(super) const KEYS: ShapeKeys = ShapeKeys {
    kv_heads: None,
    head_dim: None,
    ..ShapeKeys::USUAL
};

pub(super) const NAMES: EncoderNames = EncoderNames {
    prefix: "bert.",
    layer: "encoder.layer.{l}.",
    projections: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
    norm: ("weight", Some("bias")),
    head_transform: "cls.predictions.transform.dense",
    head_norm: "cls.predictions.transform.LayerNorm",
    decoder: "cls.predictions.decoder",
    bias: "cls.predictions.bias",
};

#[typetag::serde(name = "bert")]
impl Architecture for Bert {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("bert")
    }

    /// Spelled as the file does; without a file, as the class named in the config.
    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        check(config)?;
        let class = class(evidence, "BertForMaskedLM");
        let is_prefixed = evidence.has(
            "bert.embeddings.word_embeddings.weight",
            class != "BertModel",
        );
        let mut names = NAMES;
        names.prefix = if is_prefixed { "bert." } else { "" };
        let gamma = format!("{}embeddings.LayerNorm.gamma", names.prefix);
        if evidence.has(&gamma, false) {
            names.norm = ("gamma", Some("beta"));
        }
        let is_for_pre_training = class == "BertForPreTraining";
        let mut carried = Vec::new();
        let pooler = format!("{}pooler.dense.weight", names.prefix);
        if evidence.has(&pooler, class == "BertModel" || is_for_pre_training) {
            carried.push(("pooler.dense", None, true));
        }
        if evidence.has("cls.seq_relationship.weight", is_for_pre_training) {
            carried.push(("cls.seq_relationship", Some(2), false));
        }
        let activation = Activation::read(config, "hidden_act", "gelu")?;
        Encoder {
            architecture: "bert",
            evidence,
            keys: KEYS,
            shape: Shape::read(config, &KEYS, None, Some(512))?,
            names,
            norm: Norm {
                kind: NormKind::Layer,
                eps: config.number_or("layer_norm_eps", 1e-12)?,
            },
            activation,
            head_activation: activation,
            n_types: Some(config.size_or("type_vocab_size", 2)?),
            first_position: 0,
            tied: config.flag_or("tie_word_embeddings", true)?,
            has_head: evidence.has(
                "cls.predictions.transform.dense.weight",
                class == "BertForMaskedLM" || is_for_pre_training,
            ),
            carried,
            initializer_range: config.number_or("initializer_range", 0.02)?,
        }
        .finish()
    }
}

/// Refuses variants that are decoders, or whose positions enter otherwise.
pub(super) fn check(config: &Config) -> Result<()> {
    config.only("is_decoder", false)?;
    config.only("add_cross_attention", false)?;
    let positions = config.word_or("position_embedding_type", "absolute")?;
    if positions != "absolute" {
        let message = format!(
            "`position_embedding_type`: expected absolute, got {positions}; others are not \
             supported"
        );
        return Err(config.error(message));
    }
    Ok(())
}

minitron_core::plugin! {
    Architecture for Bert {
        tag: "bert",
        summary: "BERT encoders, bare or with the heads of pre-training, in the old and the new \
                  spelling",
        source: "arXiv 1810.04805",
    }
}
