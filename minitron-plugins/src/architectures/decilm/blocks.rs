//! What `block_configs` says of each layer.

use minitron_core::checkpoint::Config;
use minitron_core::error::{Error, Result};
use serde_json::{Map, Value};

/// The list, with an object for each layer.
pub(super) const KEY: &str = "block_configs";
/// What widths that are given as multipliers are rounded up to.
pub(super) const STEP: usize = 256;
/// Sizes stay below this, so that their products stay within 64 bits.
const LIMIT: f64 = (1u64 << 31) as f64;
/// Variants of a part that are not computed, where they are not null.
const VARIANTS: [(&str, &[&str]); 2] = [
    (
        "attention",
        &[
            "window_length",
            "sparsify",
            "num_sink_tokens",
            "mamba",
            "llama4",
        ],
    ),
    ("ffn", &["sparsify", "moe"]),
];

/// One layer's sizes; none where it has no such part.
pub(super) struct BlockSizes {
    pub kv_heads: Option<usize>,
    pub mlp: Option<usize>,
}

/// All layers of the whole model.
pub(super) struct Blocks {
    pub sizes: Vec<BlockSizes>,
    /// The entries with the keys that readers look for.
    pub entries: Vec<Value>,
}

impl Blocks {
    /// # Errors
    /// `Checkpoint` for a list of another length, or an entry that says something else or what is
    /// not computed.
    pub fn read(config: &Config) -> Result<Self> {
        let n_layers = config.size("num_hidden_layers")?;
        let Some(list) = config.list(KEY)? else {
            return Err(config.error(format!(
                "no `{KEY}`; expected a list of {n_layers} objects, one for a layer, with \
                 `attention` and `ffn`"
            )));
        };
        if list.len() != n_layers {
            let found = list.len();
            return Err(config.error(format!(
                "`{KEY}`: expected {n_layers} entries, one for a layer, got {found}; correct it or \
                 `num_hidden_layers`"
            )));
        }
        let (mut sizes, mut entries) = (Vec::new(), Vec::new());
        for (layer, entry) in list.iter().enumerate() {
            let [attention, ffn] = VARIANTS.map(|(name, variants)| {
                let part = Part::read(config, layer, entry, name)?;
                part.refuse(variants).map(|()| part)
            });
            let (attention, ffn) = (attention?, ffn?);
            sizes.push(BlockSizes {
                kv_heads: attention.kv_heads()?,
                mlp: ffn.width()?,
            });
            entries.push(completed(entry));
        }
        Ok(Blocks { sizes, entries })
    }
}

/// The same entry with switches that it leaves to their defaults.
fn completed(entry: &Value) -> Value {
    let mut entry = entry.clone();
    for (part, _) in VARIANTS {
        for switch in ["no_op", "replace_with_linear"] {
            if let Some(Value::Object(part)) = entry.get_mut(part) {
                part.entry(switch).or_insert(Value::Bool(false));
            }
        }
    }
    entry
}

/// Attention or MLP of one layer, as the config says it.
struct Part<'c> {
    config: &'c Config,
    layer: usize,
    name: &'static str,
    object: &'c Map<String, Value>,
}

impl<'c> Part<'c> {
    fn read(
        config: &'c Config,
        layer: usize,
        entry: &'c Value,
        name: &'static str,
    ) -> Result<Self> {
        let found = entry.get(name);
        match found.and_then(Value::as_object) {
            Some(object) => Ok(Part {
                config,
                layer,
                name,
                object,
            }),
            None => Err(config.error(format!(
                "`{KEY}[{layer}].{name}`: expected an object, got {}; correct config.json",
                shortened(found)
            ))),
        }
    }

    /// A value; null counts as absent.
    fn get(&self, key: &str) -> Option<&'c Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let Part {
            config,
            layer,
            name,
            object,
        } = self;
        let found = shortened(object.get(key));
        config.error(format!(
            "`{KEY}[{layer}].{name}.{key}`: expected {expected}, got {found}; correct config.json"
        ))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().filter(|size| (1..1 << 31).contains(size));
        match size {
            Some(size) => Ok(Some(size as usize)),
            None => Err(self.wrong(key, "a positive integer below 2^31")),
        }
    }

    /// Refuses what is not computed, by name.
    fn refuse(&self, variants: &[&str]) -> Result<()> {
        let variant = variants.iter().find(|key| self.get(key).is_some());
        let key = match variant {
            Some(key) => key,
            None if self.flag("replace_with_linear")? => "replace_with_linear",
            None => return Ok(()),
        };
        let (Part { layer, name, .. }, found) = (self, shortened(self.object.get(key)));
        Err(self.config.error(format!(
            "`{KEY}[{layer}].{name}.{key}`: expected null or false, got {found}; this variant is \
             not supported: take a model without it"
        )))
    }

    fn kv_heads(&self) -> Result<Option<usize>> {
        if self.flag("no_op")? {
            return Ok(None);
        }
        let n_heads = self.config.size("num_attention_heads")?;
        let key = "n_heads_in_group";
        let per_group = self.size(key)?.filter(|n| n_heads.is_multiple_of(*n));
        match per_group {
            Some(per_group) => Ok(Some(n_heads / per_group)),
            None => {
                let expected =
                    format!("a divisor of `num_attention_heads` ({n_heads}), or no_op true");
                Err(self.wrong(key, &expected))
            }
        }
    }

    fn width(&self) -> Result<Option<usize>> {
        if self.flag("no_op")? {
            return Ok(None);
        }
        if let Some(width) = self.size("intermediate_size")? {
            return Ok(Some(width));
        }
        let expected = "a positive number for a width below 2^31, `intermediate_size`, or no_op \
                        true";
        let hidden = self.config.size("hidden_size")? as f64;
        let times = self.get("ffn_mult").and_then(Value::as_f64);
        let width = times.map(|times| 2.0 * times * hidden / 3.0);
        match width.filter(|width| (1.0..LIMIT - STEP as f64).contains(width)) {
            Some(width) => Ok(Some((width as usize).next_multiple_of(STEP))),
            None => Err(self.wrong("ffn_mult", expected)),
        }
    }
}

fn shortened(value: Option<&Value>) -> String {
    let text = value.map_or("nothing".to_owned(), Value::to_string);
    match text.chars().count() {
        0..=60 => text,
        _ => text.chars().take(60).chain("…".chars()).collect(),
    }
}
