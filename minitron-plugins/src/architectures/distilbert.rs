use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::spec::{
    Activation, CheckpointInfo, ModelSpec, Norm, NormKind, Shape, ShapeKeys,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::encoder::{Encoder, EncoderNames, class};

/// DistilBERT: BERT's layers without segments, under other names.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distilbert {}

const KEYS: ShapeKeys = ShapeKeys {
    hidden: "dim",
    mlp: "hidden_dim",
    heads: "n_heads",
    kv_heads: None,
    head_dim: None,
    depth: "n_layers",
    positions: "max_position_embeddings",
};

#[typetag::serde(name = "distilbert")]
impl Architecture for Distilbert {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("distilbert")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let class = class(evidence, "DistilBertForMaskedLM");
        let is_prefixed = evidence.has(
            "distilbert.embeddings.word_embeddings.weight",
            class != "DistilBertModel",
        );
        let activation = Activation::read(config, "activation", "gelu")?;
        Encoder {
            architecture: "distilbert",
            evidence,
            keys: KEYS,
            shape: Shape::read(config, &KEYS, Some(3072), Some(512))?,
            names: EncoderNames {
                prefix: if is_prefixed { "distilbert." } else { "" },
                layer: "transformer.layer.{l}.",
                projections: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                attention_output: "attention.out_lin",
                attention_norm: "sa_layer_norm",
                up: "ffn.lin1",
                down: "ffn.lin2",
                mlp_norm: "output_layer_norm",
                norm: ("weight", Some("bias")),
                head_transform: "vocab_transform",
                head_norm: "vocab_layer_norm",
                decoder: "vocab_projector",
                bias: "vocab_projector.bias",
            },
            norm: Norm {
                kind: NormKind::Layer,
                eps: 1e-12,
            },
            activation,
            head_activation: activation,
            n_types: None,
            first_position: 0,
            tied: config.flag_or("tie_word_embeddings", true)?,
            has_head: evidence.has("vocab_transform.weight", class == "DistilBertForMaskedLM"),
            carried: Vec::new(),
            initializer_range: config.number_or("initializer_range", 0.02)?,
        }
        .finish()
    }
}

minitron_core::plugin! {
    Architecture for Distilbert {
        tag: "distilbert",
        summary: "DistilBERT, bare or with its masked-language head",
        source: "arXiv 1910.01108",
    }
}
