//! Which of a folder's files the weights are read from: those that `transformers` reads, and what
//! else lies there is said.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::Config;
use super::links::refuse_link_outside;
use crate::error::{Error, IoContext, Result};

/// Name of the weights in a folder with a single file.
pub const SINGLE: &str = "model.safetensors";
/// Name of the table of shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// Names the file of the weights where it has another name.
const NAMED: &str = "transformers_weights";

/// What a person should know of a folder that was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remarks {
    /// What may not be meant.
    pub warnings: Vec<String>,
    /// What was done with what lies there.
    pub notes: Vec<String>,
}

/// Where a folder's weights lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// In one file.
    Single(PathBuf),
    /// In the shards that this index names.
    Sharded(PathBuf),
}

/// Files that hold a model in a way that is not read here.
struct Other {
    /// How their names begin and end.
    name: (&'static str, &'static str),
    what: &'static str,
    /// How weights to be read are made of them; `{dir}`, `{file}` and `{class}` are put in.
    way: &'static str,
}

const LOAD_AND_SAVE: &str = "python -c \"from transformers import {class} as M; \
                             M.from_pretrained('{dir}').save_pretrained('{dir}')\"";
const ORIGINAL: &str = "take the repository that `transformers` reads, or its conversion script";

/// The likelier ones first.
const OTHERS: &[Other] = &[
    Other {
        name: ("pytorch_model", ".bin"),
        what: "weights in PyTorch's own format",
        way: LOAD_AND_SAVE,
    },
    Other {
        name: ("pytorch_model", ".bin.index.json"),
        what: "weights in PyTorch's own format",
        way: LOAD_AND_SAVE,
    },
    Other {
        name: ("model-", ".safetensors"),
        what: "shards without their table",
        way: "fetch or copy model.safetensors.index.json from where they came from",
    },
    Other {
        name: ("model.", ".safetensors"),
        what: "weights under the name of a variant",
        way: "rename the file to model.safetensors",
    },
    Other {
        name: ("consolidated", ".safetensors"),
        what: "weights in their author's own layout",
        way: ORIGINAL,
    },
    Other {
        name: ("consolidated", ".pth"),
        what: "weights in their author's own layout",
        way: ORIGINAL,
    },
    Other {
        name: ("", ".gguf"),
        what: "a GGUF file",
        way: "python -c \"from transformers import {class} as M; \
              M.from_pretrained('{dir}', gguf_file='{file}').save_pretrained('{dir}')\"",
    },
    Other {
        name: ("zero_to_fp32", ".py"),
        what: "states of DeepSpeed",
        way: "in that folder, python zero_to_fp32.py . . --safe_serialization",
    },
    Other {
        name: ("", ".distcp"),
        what: "states of PyTorch's distributed training",
        way: "accelerate merge-weights {dir} {dir}",
    },
    Other {
        name: ("tf_model", ".h5"),
        what: "weights of TensorFlow",
        way: "save them once with `transformers` 4",
    },
    Other {
        name: ("flax_model", ".msgpack"),
        what: "weights of Flax",
        way: "save them once with `transformers` 4",
    },
    Other {
        name: ("", ".onnx"),
        what: "a graph of ONNX",
        way: "take the model that it was exported from",
    },
    Other {
        name: ("", ".ckpt"),
        what: "a training's own state",
        way: "save the model in it with `save_pretrained`",
    },
];

/// Files beside the weights that hold them a second time.
const SECOND_SETS: usize = 7;

const ADAPTER: &str = "adapter_config.json";

impl WeightFiles {
    /// Those of a folder: the file that the config names, `model.safetensors`, or the shards of an
    /// index, in this order.
    ///
    /// # Errors
    /// `Checkpoint` where there are none, with what lies there instead and how weights are made of
    /// it.
    pub fn of(dir: &Path, config: Option<&Config>) -> Result<(Self, Remarks)> {
        let names = names_in(dir)?;
        let mut remarks = Remarks::default();
        let found = match config
            .map(|config| named(dir, config))
            .transpose()?
            .flatten()
        {
            Some(found) => found,
            None if dir.join(SINGLE).exists() => WeightFiles::Single(dir.join(SINGLE)),
            None if dir.join(INDEX).exists() => WeightFiles::Sharded(dir.join(INDEX)),
            None => return Err(nothing_to_read(dir, &names, config)),
        };
        if found == WeightFiles::Single(dir.join(SINGLE)) && dir.join(INDEX).exists() {
            remarks.warnings.push(format!(
                "{}: {SINGLE} and {INDEX} are both there; {SINGLE} is read, as `transformers` \
                 does: remove the one that is not meant",
                dir.display()
            ));
        }
        if is_adapter(&names) {
            let merge = merge_adapter(dir);
            remarks.warnings.push(format!(
                "{}: an adapter lies beside the weights and is not applied; `transformers` applies \
                 it where peft is installed. To have it in the weights: {merge}",
                dir.display()
            ));
        }
        let second = names.iter().find(|name| {
            OTHERS
                .iter()
                .take(SECOND_SETS)
                .any(|other| other.is(name, &found))
        });
        if let Some(name) = second {
            remarks.notes.push(format!(
                "{}: {name} is not read beside the weights taken",
                dir.display()
            ));
        }
        Ok((found, remarks))
    }
}

/// Whether a folder holds weights that are read, or a table that says where they are.
pub fn has_weights(dir: &Path) -> bool {
    [SINGLE, INDEX].iter().any(|name| dir.join(name).exists())
}

/// What a folder without weights holds instead, where that can be told, and what to do.
pub fn held_instead(dir: &Path, config: Option<&Config>) -> Result<Option<String>> {
    Ok(instead(dir, &names_in(dir)?, config))
}

/// What a folder without config.json is, where that can be told.
pub fn without_config(dir: &Path) -> Result<Option<Error>> {
    let names = names_in(dir)?;
    if let Some(found) = instead(dir, &names, None) {
        return Ok(Some(Error::checkpoint(
            dir,
            format!("no config.json; {found}"),
        )));
    }
    let mut inside: Vec<&String> = names
        .iter()
        .filter(|name| dir.join(name).join("config.json").is_file())
        .collect();
    inside.sort_by_key(|name| std::cmp::Reverse((name.len(), name.as_str())));
    Ok(inside.first().map(|name| {
        let place = dir.join(name);
        Error::checkpoint(
            dir,
            format!(
                "no config.json; {} has one: give that folder",
                place.display()
            ),
        )
    }))
}

impl Other {
    /// Whether this is such a file, and not the one that is read.
    fn is(&self, name: &str, read: &WeightFiles) -> bool {
        let (begin, end) = self.name;
        let is_read = match read {
            WeightFiles::Single(path) => path.ends_with(name),
            // Shards are told from the index.
            WeightFiles::Sharded(_) => name.starts_with("model-"),
        };
        name.starts_with(begin) && name.ends_with(end) && name != SINGLE && !is_read
    }
}

/// The file that a config names.
fn named(dir: &Path, config: &Config) -> Result<Option<WeightFiles>> {
    let name = config.word_or(NAMED, "")?;
    if name.is_empty() {
        return Ok(None);
    }
    let path = dir.join(name);
    if name.contains(['/', '\\']) || !path.is_file() {
        let message = format!(
            "`{NAMED}`: expected a file in this folder, got `{name}`; fetch it, or remove the key"
        );
        return Err(config.error(message));
    }
    match name.ends_with(".safetensors.index.json") {
        true => Ok(Some(WeightFiles::Sharded(path))),
        false if name.ends_with(".safetensors") => Ok(Some(WeightFiles::Single(path))),
        false => Err(config.error(format!(
            "`{NAMED}`: expected safetensors or an index of them, got `{name}`"
        ))),
    }
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).at_path(dir)? {
        names.push(
            entry
                .at_path(dir)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}

fn is_adapter(names: &[String]) -> bool {
    names.iter().any(|name| name == ADAPTER)
}

fn merge_adapter(dir: &Path) -> String {
    format!(
        "python -c \"from peft import AutoPeftModelForCausalLM as M; \
         M.from_pretrained('{0}').merge_and_unload().save_pretrained('{0}-merged')\"",
        dir.display()
    )
}

fn nothing_to_read(dir: &Path, names: &[String], config: Option<&Config>) -> Error {
    let message = match instead(dir, names, config) {
        Some(found) => format!("no weights that are read ({SINGLE} or {INDEX}); {found}"),
        None => format!("no weights; expected {SINGLE} or {INDEX}, as `transformers` writes them"),
    };
    Error::checkpoint(dir, message)
}

fn instead(dir: &Path, names: &[String], config: Option<&Config>) -> Option<String> {
    if is_adapter(names) {
        let base = Config::load(&dir.join(ADAPTER)).ok();
        let base = base
            .as_ref()
            .and_then(|base| base.word_or("base_model_name_or_path", "").ok())
            .unwrap_or_default();
        let of = if base.is_empty() {
            String::new()
        } else {
            format!(" of {base}")
        };
        return Some(format!(
            "an adapter{of} lies there; merge it into its model first: {}",
            merge_adapter(dir)
        ));
    }
    // Nothing is read, so that no name is the one read.
    let none = WeightFiles::Single(PathBuf::new());
    let (other, name) = OTHERS
        .iter()
        .find_map(|other| Some((other, names.iter().find(|name| other.is(name, &none))?)))?;
    let class = config.and_then(|config| config.get("architectures")?.get(0)?.as_str());
    // It is put into a command.
    let class = class
        .filter(|class| class.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or("AutoModelForCausalLM");
    let place = dir.display().to_string();
    let way = other
        .way
        .replace("{dir}", &place)
        .replace("{file}", name)
        .replace("{class}", class);
    Some(format!("{name} lies there, {}: {way}", other.what))
}

/// A shard of the usual name that an index does not name.
pub(super) fn unnamed_shard(dir: &Path, named: &BTreeSet<&String>) -> Result<Option<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).at_path(dir)? {
        let name = entry
            .at_path(dir)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
        if is_shard && !named.contains(&name) {
            found.push(name);
        }
    }
    Ok(found.into_iter().min())
}

/// A shard's path, refused when it is absent or would leave the folder.
pub(super) fn shard_path(dir: &Path, index_path: &Path, shard: &str) -> Result<PathBuf> {
    let mut parts = Path::new(shard).components();
    if !matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) {
        let message =
            format!("names the shard `{shard}`, which is not a plain file name inside the folder");
        return Err(Error::checkpoint(index_path, message));
    }
    let path = dir.join(shard);
    if !path.exists() {
        let message = format!(
            "names the shard `{shard}`, which is not in the folder; fetch the missing file"
        );
        return Err(Error::checkpoint(index_path, message));
    }
    // Whatever its ending.
    refuse_link_outside(dir, &path)?;
    Ok(path)
}
