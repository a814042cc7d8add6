use minitron_core::blueprint::{
    Activation, Blueprint, Evidence, NormKind, NormPlace, Options, Output, Positions, Role, Shape, ShapeKeys, Slot,
    Table, fixed,
};
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// BERT encoders: norms after the sums, learned positions and segments, a masked-language head where the file has one.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bert {}

const KEYS: ShapeKeys = ShapeKeys { kv_heads: None, head_dim: None, ..ShapeKeys::USUAL };

/// How this file spells the family; without a file, as the class named in the config does.
struct Spelling {
    prefix: &'static str,
    norm: (&'static str, Option<&'static str>),
    has_pooler: bool,
    has_head: bool,
    has_sentence_head: bool,
}

impl Spelling {
    fn of(evidence: &Evidence) -> Self {
        let classes = evidence.config.get("architectures").and_then(|list| list.get(0));
        let class = classes.and_then(serde_json::Value::as_str).unwrap_or("BertForMaskedLM");
        let is_prefixed = evidence.has("bert.embeddings.word_embeddings.weight", class != "BertModel");
        let prefix = if is_prefixed { "bert." } else { "" };
        let has = |name: &str, classes: &[&str]| evidence.has(name, classes.contains(&class));
        let is_old = has(&format!("{prefix}embeddings.LayerNorm.gamma"), &[]);
        Spelling {
            prefix,
            norm: if is_old { ("gamma", Some("beta")) } else { ("weight", Some("bias")) },
            has_pooler: has(&format!("{prefix}pooler.dense.weight"), &["BertModel", "BertForPreTraining"]),
            has_head: has("cls.predictions.transform.dense.weight", &["BertForMaskedLM", "BertForPreTraining"]),
            has_sentence_head: has("cls.seq_relationship.weight", &["BertForPreTraining"]),
        }
    }
}

#[typetag::serde(name = "bert")]
impl Architecture for Bert {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("bert")
    }

    fn blueprint(&self, evidence: &Evidence) -> Result<Blueprint> {
        let config = evidence.config;
        config.only("is_decoder", false)?;
        config.only("add_cross_attention", false)?;
        let positions = config.word_or("position_embedding_type", "absolute")?;
        if positions != "absolute" {
            let message =
                format!("`position_embedding_type`: expected absolute, got {positions}; others are not supported");
            return Err(config.error(message));
        }
        let shape = Shape::read(config, &KEYS, None, Some(512))?;
        let tied = config.flag_or("tie_word_embeddings", true)?;
        let spelling = Spelling::of(evidence);

        let mut table = Table::new(spelling.prefix);
        embeddings(&mut table, &shape, &spelling, config.size_or("type_vocab_size", 2)?);
        if tied {
            table.also_known_as(&["cls.predictions.decoder.weight"]);
        }
        for layer_idx in 0..shape.n_layers {
            layer(&mut table, &shape, &spelling, layer_idx);
        }
        table.layer(None);
        if spelling.has_pooler {
            table.linear("pooler.dense", Role::Carried, shape.stream(), shape.stream(), true);
        }
        table.unprefixed(|table| {
            if spelling.has_head {
                masked_language_head(table, evidence, &shape, &spelling, tied);
            }
            if spelling.has_sentence_head {
                table.linear("cls.seq_relationship", Role::Carried, fixed(2), shape.stream(), true);
            }
        });

        let options = Options {
            norm: NormKind::Layer,
            norm_eps: config.number_or("layer_norm_eps", 1e-12)?,
            norm_place: NormPlace::Post,
            activation: Activation::read(config, "hidden_act", "gelu")?,
            positions: Positions::Learned,
            causal: false,
            head_dim: shape.head_dim,
            max_positions: shape.max_positions,
            vocab: shape.vocab,
            tied,
            output: if spelling.has_head { Output::Logits } else { Output::Hidden },
            initializer_range: config.number_or("initializer_range", 0.02)?,
        };
        let mut blueprint = Blueprint::new("bert", config, shape.dims(&KEYS), table.finish(), options)?;
        blueprint.hidden_follows_heads = true;
        blueprint.buffers = &["embeddings.position_ids"];
        blueprint.reads = &["is_causal", "use_bidirectional_attention"];
        Ok(blueprint)
    }
}

/// The token table comes last, so that a tie can be added to it.
fn embeddings(table: &mut Table, shape: &Shape, spelling: &Spelling, n_types: usize) {
    let mut rows = |name: &str, role, n_rows| {
        table.tensor(&format!("embeddings.{name}.weight"), role, Slot::Weight, vec![fixed(n_rows), shape.stream()]);
    };
    rows("position_embeddings", Role::PositionEmbedding, shape.max_positions);
    rows("token_type_embeddings", Role::TypeEmbedding, n_types);
    table.norm("embeddings.LayerNorm", Role::EmbeddingNorm, shape.stream(), spelling.norm);
    let token_sides = vec![fixed(shape.vocab), shape.stream()];
    table.tensor("embeddings.word_embeddings.weight", Role::TokenEmbedding, Slot::Weight, token_sides);
}

fn layer(table: &mut Table, shape: &Shape, spelling: &Spelling, layer_idx: usize) {
    let (stream, neurons, heads) = (shape.stream(), shape.neurons(layer_idx), shape.queries(layer_idx));
    table
        .layer(Some(layer_idx))
        .linear("encoder.layer.{l}.attention.self.query", Role::Query, heads.clone(), stream.clone(), true)
        .linear("encoder.layer.{l}.attention.self.key", Role::Key, heads.clone(), stream.clone(), true)
        .linear("encoder.layer.{l}.attention.self.value", Role::Value, heads.clone(), stream.clone(), true)
        .linear("encoder.layer.{l}.attention.output.dense", Role::AttentionOutput, stream.clone(), heads, true)
        .norm("encoder.layer.{l}.attention.output.LayerNorm", Role::AttentionNorm, stream.clone(), spelling.norm)
        .linear("encoder.layer.{l}.intermediate.dense", Role::Up, neurons.clone(), stream.clone(), true)
        .linear("encoder.layer.{l}.output.dense", Role::Down, stream.clone(), neurons, true)
        .norm("encoder.layer.{l}.output.LayerNorm", Role::MlpNorm, stream, spelling.norm);
}

/// The decoder has one bias under two names, of which a file may hold either or both.
fn masked_language_head(table: &mut Table, evidence: &Evidence, shape: &Shape, spelling: &Spelling, tied: bool) {
    let (own, decoder) = ("cls.predictions.bias", "cls.predictions.decoder.bias");
    table.linear("cls.predictions.transform.dense", Role::HeadTransform, shape.stream(), shape.stream(), true).norm(
        "cls.predictions.transform.LayerNorm",
        Role::HeadNorm,
        shape.stream(),
        spelling.norm,
    );
    if !tied {
        table.linear("cls.predictions.decoder", Role::Head, fixed(shape.vocab), shape.stream(), false);
    }
    // Untied, the decoder's own is the one that is added.
    let (first, second) = if tied { (own, decoder) } else { (decoder, own) };
    let (bias, other) = if evidence.has(first, true) { (first, second) } else { (second, first) };
    table.tensor(bias, Role::Head, Slot::Bias, vec![fixed(shape.vocab)]);
    if tied {
        table.also_known_as(&[other]);
    } else if evidence.has(own, false) && bias != own {
        table.tensor(own, Role::Carried, Slot::Bias, vec![fixed(shape.vocab)]);
    }
}

minitron_core::plugin! {
    Architecture for Bert {
        tag: "bert",
        summary: "BERT encoders, bare or with the heads of pre-training, in the old and the new spelling",
        source: "arXiv 1810.04805",
    }
}
