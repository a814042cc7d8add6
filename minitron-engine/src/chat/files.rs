//! Where a model folder keeps its chat templates and names its special tokens.

use std::path::Path;

use serde_json::{Map, Value};

use minitron_core::checkpoint::Config;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;

/// The template that is taken, and the one where tools are at hand.
pub(super) const DEFAULT: &str = "default";
pub(super) const TOOL_USE: &str = "tool_use";

/// Special tokens that `transformers` names to templates.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What was found.
#[derive(Debug)]
pub(super) struct Files {
    /// Name, origin and source of each.
    pub(super) templates: Vec<(String, String, String)>,
    /// By name.
    pub(super) special_tokens: Map<String, Value>,
}

impl Files {
    /// `None` where the folder has no template.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        let config = Config::load_optional(&dir.join("tokenizer_config.json"))?;
        let mut templates = in_files_of_their_own(dir)?;
        if templates.is_empty() {
            templates = config
                .as_ref()
                .map(in_config)
                .transpose()?
                .unwrap_or_default();
        }
        if templates.is_empty() {
            let alone = Config::load_optional(&dir.join("chat_template.json"))?;
            templates = alone
                .as_ref()
                .map(in_config)
                .transpose()?
                .unwrap_or_default();
        }
        if templates.is_empty() {
            return Ok(None);
        }
        let special_tokens = special_tokens(dir, config.as_ref())?;
        Ok(Some(Files {
            templates,
            special_tokens,
        }))
    }
}

/// Those take the place of all that tokenizer_config.json says.
fn in_files_of_their_own(dir: &Path) -> Result<Vec<(String, String, String)>> {
    let mut templates = Vec::new();
    let path = dir.join("chat_template.jinja");
    if path.try_exists().at_path(&path)? {
        templates.push((DEFAULT.to_owned(), path.display().to_string(), read(&path)?));
    }
    let further = dir.join("additional_chat_templates");
    if further.is_dir() {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&further).at_path(&further)? {
            let path = entry.at_path(&further)?.path();
            if path.extension().is_some_and(|ending| ending == "jinja") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            templates.retain(|(other, ..)| *other != name);
            templates.push((name, path.display().to_string(), read(&path)?));
        }
    }
    Ok(templates)
}

fn read(path: &Path) -> Result<String> {
    read_text(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::checkpoint(path, "not UTF-8 text; expected a chat template")
        }
        _ => Error::io(path, e),
    })
}

/// `chat_template`: one, or a list of `name` and `template`.
fn in_config(config: &Config) -> Result<Vec<(String, String, String)>> {
    let mut templates = Vec::new();
    match config.get("chat_template") {
        None => {}
        Some(Value::String(source)) => {
            templates.push((DEFAULT.to_owned(), origin(config), source.clone()));
        }
        Some(Value::Array(list)) => {
            for item in list {
                let name = item.get("name").and_then(Value::as_str);
                let source = item.get("template").and_then(Value::as_str);
                let (name, source) = name.zip(source).ok_or_else(|| malformed(config, item))?;
                templates.push(named(config, name, source));
            }
        }
        Some(Value::Object(by_name)) => {
            for (name, source) in by_name {
                let source = source.as_str().ok_or_else(|| malformed(config, source))?;
                templates.push(named(config, name, source));
            }
        }
        Some(other) => return Err(malformed(config, other)),
    }
    Ok(templates)
}

fn origin(config: &Config) -> String {
    format!("{}: chat_template", config.path().display())
}

fn named(config: &Config, name: &str, source: &str) -> (String, String, String) {
    let origin = format!("{} `{name}`", origin(config));
    (name.to_owned(), origin, source.to_owned())
}

fn malformed(config: &Config, found: &Value) -> Error {
    config.error(format!(
        "`chat_template`: expected a template, or a list of `name` and `template`, got {found}"
    ))
}

/// tokenizer_config.json, over which special_tokens_map.json goes where the former lists no tokens
/// (`added_tokens_decoder`).
fn special_tokens(dir: &Path, config: Option<&Config>) -> Result<Map<String, Value>> {
    let lists_tokens = config.is_some_and(|config| config.get("added_tokens_decoder").is_some());
    let map = match lists_tokens {
        true => None,
        false => Config::load_optional(&dir.join("special_tokens_map.json"))?,
    };
    let mut tokens = Map::new();
    for name in NAMED {
        let in_map = map.as_ref().and_then(|map| map.get(name));
        let token = match in_map.or_else(|| config?.get(name)) {
            Some(Value::Object(token)) => token.get("content"),
            token => token,
        };
        if let Some(token) = token.and_then(Value::as_str) {
            tokens.insert(name.to_owned(), token.into());
        }
    }
    Ok(tokens)
}
