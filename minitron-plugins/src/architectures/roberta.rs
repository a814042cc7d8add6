use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{Activation, CheckpointInfo, ModelSpec, Norm, NormKind, Shape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bert::{KEYS, NAMES, check};
use super::encoder::{Encoder, EncoderNames, class};

/// RoBERTa: BERT whose positions begin behind the padding token's id.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Roberta {}

#[typetag::serde(name = "roberta")]
impl Architecture for Roberta {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("roberta")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        check(config)?;
        let class = class(evidence, "RobertaForMaskedLM");
        let is_prefixed = evidence.has(
            "roberta.embeddings.word_embeddings.weight",
            class != "RobertaModel",
        );
        let prefix = if is_prefixed { "roberta." } else { "" };
        let has_pooler = evidence.has(
            &format!("{prefix}pooler.dense.weight"),
            class == "RobertaModel",
        );
        Encoder {
            architecture: "roberta",
            evidence,
            keys: KEYS,
            shape: Shape::read(config, &KEYS, None, Some(512))?,
            names: EncoderNames {
                prefix,
                head_transform: "lm_head.dense",
                head_norm: "lm_head.layer_norm",
                decoder: "lm_head.decoder",
                bias: "lm_head.bias",
                ..NAMES
            },
            norm: Norm {
                kind: NormKind::Layer,
                eps: config.number_or("layer_norm_eps", 1e-12)?,
            },
            activation: Activation::read(config, "hidden_act", "gelu")?,
            // Whatever the layers take.
            head_activation: Activation::Gelu,
            n_types: Some(config.size_or("type_vocab_size", 2)?),
            first_position: config.count_or("pad_token_id", 1)? + 1,
            tied: config.flag_or("tie_word_embeddings", true)?,
            has_head: evidence.has("lm_head.dense.weight", class == "RobertaForMaskedLM"),
            carried: if has_pooler {
                vec![("pooler.dense", None, true)]
            } else {
                Vec::new()
            },
            initializer_range: config.number_or("initializer_range", 0.02)?,
        }
        .finish()
    }
}

minitron_core::plugin! {
    Architecture for Roberta {
        tag: "roberta",
        summary: "RoBERTa, bare or with its masked-language head",
        source: "arXiv 1907.11692",
    }
}
