//! Keys of config.json that change what a model computes wherever they are read, and that a family
//! does not read.

use serde_json::Value;

use crate::checkpoint::Config;

/// Values at which a key changes nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// Absent, null, false, zero, or empty.
    Off,
    /// That number.
    Number(f64),
    /// Absent, null, zero or one: a count of alternatives.
    AtMostOne,
    /// Absent, null, or as long as the positions; nothing where `use_sliding_window` is false.
    Window,
    /// All entries are that word.
    All(&'static str),
    /// True.
    On,
}

use Neutral::{All, AtMostOne, Number, Off, On, Window};

/// What a key means in the families that read it.
const MEANINGS: &[(&str, Neutral, &str)] = &[
    (
        "rotary_pct",
        Number(1.0),
        "the share of a head's channels that turn",
    ),
    (
        "rotary_percent",
        Number(1.0),
        "the share of a head's channels that turn",
    ),
    (
        "rope_pct",
        Number(1.0),
        "the share of a head's channels that turn",
    ),
    (
        "partial_rotary_factor",
        Number(1.0),
        "the share of a head's channels that turn",
    ),
    ("rotary_dim", Off, "how many channels of a head turn"),
    ("rope_ratio", Number(1.0), "a factor of the rotary base"),
    ("rotary_emb_base", Number(10_000.0), "the rotary base"),
    ("rotary_base", Number(10_000.0), "the rotary base"),
    (
        "rotary_interleaved",
        Off,
        "which channels of a head turn together",
    ),
    (
        "rope_interleaved",
        Off,
        "which channels of a head turn together",
    ),
    ("no_rope_layers", Off, "layers whose queries do not turn"),
    (
        "no_rope_layer_interval",
        Off,
        "layers whose queries do not turn",
    ),
    ("alibi", Off, "a bias of attention by distance"),
    ("use_alibi", Off, "a bias of attention by distance"),
    (
        "sliding_window",
        Window,
        "attention to the last tokens alone",
    ),
    (
        "attention_window_size",
        Window,
        "attention to the last tokens alone",
    ),
    (
        "layer_types",
        All("full_attention"),
        "another attention in some layers",
    ),
    ("attention_sinks", Off, "attention to nothing"),
    ("is_causal", On, "whether tokens see only earlier ones"),
    (
        "use_bidirectional_attention",
        Off,
        "whether tokens see only earlier ones",
    ),
    ("attn_logit_softcapping", Off, "a cap of attention scores"),
    ("final_logit_softcapping", Off, "a cap of logits"),
    ("attention_multiplier", Off, "a factor of attention scores"),
    ("query_pre_attn_scalar", Off, "a factor of attention scores"),
    (
        "residual_multiplier",
        Number(1.0),
        "a factor of what a layer adds",
    ),
    ("scale_depth", Off, "a factor of what a layer adds"),
    (
        "embedding_multiplier",
        Number(1.0),
        "a factor of embeddings",
    ),
    ("embedding_scale", Number(1.0), "a factor of embeddings"),
    ("scale_embedding", Off, "a factor of embeddings"),
    ("scale_emb", Number(1.0), "a factor of embeddings"),
    ("logits_scaling", Number(1.0), "a divisor of logits"),
    ("logit_scale", Number(1.0), "a factor of logits"),
    ("dim_model_base", Off, "a divisor of logits"),
    ("qk_norm", Off, "norms of queries and keys"),
    ("use_qk_norm", Off, "norms of queries and keys"),
    ("qk_layernorm", Off, "norms of queries and keys"),
    ("clip_qkv", Off, "a cap of queries, keys and values"),
    ("parallel_attn", Off, "attention beside the MLP"),
    ("use_parallel_residual", Off, "attention beside the MLP"),
    ("num_local_experts", AtMostOne, "several MLPs a layer"),
    ("num_experts", AtMostOne, "several MLPs a layer"),
    ("n_routed_experts", AtMostOne, "several MLPs a layer"),
    ("kv_lora_rank", Off, "keys and values of low rank"),
    (
        "num_nextn_predict_layers",
        Off,
        "layers that predict further tokens",
    ),
    (
        "pruned_heads",
        Off,
        "heads that are taken out after reading",
    ),
    (
        "hidden_activation",
        Off,
        "the activation function, under another name",
    ),
];

/// Beginnings of what follows a family's name in the names of its classes.
const CLASS_ENDINGS: [&str; 5] = ["For", "Model", "LM", "DoubleHeads", "PreTrained"];

/// What a config says that its family does not read, for a person; `reads` are keys of the list
/// that the family does read.
pub(super) fn unread(config: &Config, architecture: &str, reads: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let path = config.path().display();
    for (key, neutral, meaning) in MEANINGS.iter().filter(|(key, ..)| !reads.contains(key)) {
        if let Some(value) = config
            .get(key)
            .filter(|value| !is_neutral(*neutral, value, config))
        {
            found.push(format!(
                "{path}: `{key}` is {} ({meaning}), which `{architecture}` does not read; a tool \
                 that does computes another model: take the key out, or a family that reads it",
                shortened(value)
            ));
        }
    }
    let class = foreign_class(config).filter(|_| !reads.contains(&"architectures"));
    if let Some(class) = class {
        found.push(format!(
            "{path}: `architectures` names {class}, `model_type` another family, by which it is \
             read as `transformers` does; a tool that goes by the class computes another model"
        ));
    }
    found
}

fn is_neutral(neutral: Neutral, value: &Value, config: &Config) -> bool {
    let is_off = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(word) => word.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) => false,
    };
    match neutral {
        Off => is_off,
        On => *value == Value::Bool(true),
        Number(n) => value.as_f64() == Some(n),
        AtMostOne => is_off || value.as_u64() == Some(1),
        All(word) => value
            .as_array()
            .is_some_and(|list| list.iter().all(|entry| entry.as_str() == Some(word))),
        Window => {
            let n_positions = config
                .get("max_position_embeddings")
                .and_then(Value::as_u64);
            let is_long = value
                .as_u64()
                .zip(n_positions)
                .is_some_and(|(window, n)| window >= n);
            is_off || is_long || config.get("use_sliding_window") == Some(&Value::Bool(false))
        }
    }
}

/// A class that is not called after the config's own family.
fn foreign_class(config: &Config) -> Option<String> {
    let class = config.get("architectures")?.get(0)?.as_str()?;
    let model_type = config.model_type().ok()?;
    // The language part of a model that also sees has a type of its own: `Gemma3TextModel` is
    // called after it, `Gemma3ForCausalLM` after the whole.
    let whole = model_type.strip_suffix("_text");
    let is_own = is_called_after(class, model_type)
        || whole.is_some_and(|family| is_called_after(class, family));
    (!is_own).then(|| {
        class
            .chars()
            .filter(|c| c.is_ascii_graphic())
            .take(80)
            .collect()
    })
}

fn is_called_after(class: &str, family: &str) -> bool {
    let family = plain(family);
    if !plain(class).starts_with(&family) {
        return false;
    }
    class.get(family.len()..).is_some_and(|rest| {
        rest.is_empty() || CLASS_ENDINGS.iter().any(|ending| rest.starts_with(ending))
    })
}

/// Letters and digits alone, small.
fn plain(word: &str) -> String {
    word.chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_ascii_lowercase()
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        text
    } else {
        text.chars().take(60).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn said(config: Value) -> Vec<String> {
        unread(
            &Config::from_value(Path::new("config.json"), config).unwrap(),
            "f",
            &["qk_norm"],
        )
    }

    #[test]
    fn keys_that_change_nothing_are_not_said() {
        let quiet = json!({
            "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"],
                "max_position_embeddings": 64,
            "sliding_window": 64, "layer_types": ["full_attention", "full_attention"],
                "rotary_pct": 1, "logits_scaling": 1.0,
            "attention_multiplier": null, "clip_qkv": null, "num_local_experts": 1, "alibi": false,
                "pruned_heads": {},
            "qk_norm": true, "is_causal": true, "vocab_size": 5
        });
        assert_eq!(said(quiet), [""; 0]);
        assert_eq!(
            said(json!({ "use_sliding_window": false, "sliding_window": 16 })),
            [""; 0]
        );
    }

    #[test]
    fn keys_and_classes_that_another_tool_would_read_are_said() {
        let loud = json!({
            "model_type": "llama", "architectures": ["MistralForCausalLM"],
                "max_position_embeddings": 64,
            "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"],
                "rotary_pct": 0.25,
            "attention_multiplier": 0.5, "num_local_experts": 8, "is_causal": false,
                "use_qk_norm": true
        });
        let found = said(loud);
        let keys = [
            "rotary_pct",
            "sliding_window",
            "layer_types",
            "is_causal",
            "attention_multiplier",
            "use_qk_norm",
        ];
        for key in keys
            .into_iter()
            .chain(["num_local_experts", "architectures"])
        {
            assert_eq!(
                found
                    .iter()
                    .filter(|said| said.contains(&format!("`{key}`")))
                    .count(),
                1,
                "{key}: {found:?}"
            );
        }
        assert_eq!(found.len(), 8);
        for (family, class) in [
            ("nemotron", "NemotronHForCausalLM"),
            ("llama", "Llama4ForCausalLM"),
            ("bert", "RobertaModel"),
        ] {
            assert_eq!(
                said(json!({ "model_type": family, "architectures": [class] })).len(),
                1,
                "{class}"
            );
        }
        for (family, class) in [
            ("llama", "LLaMAForCausalLM"),
            ("gpt2", "GPT2LMHeadModel"),
            ("bert", "BertModel"),
            ("gemma3_text", "Gemma3ForCausalLM"),
            ("gemma3_text", "Gemma3TextModel"),
        ] {
            assert_eq!(
                said(json!({ "model_type": family, "architectures": [class] })),
                [""; 0],
                "{class}"
            );
        }
    }
}
