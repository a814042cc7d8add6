//! `config.json`: an ordered JSON object with getters that name the key they miss.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::infinite::{bare, quoted};
use crate::error::{Error, IoContext, Result};
use crate::files::read_text;
use crate::output::write_atomic;

/// A model's `config.json`; the order and the unknown keys survive a round trip.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::checkpoint(
                path,
                "no such file; a model folder needs config.json with a `model_type`",
            ),
            std::io::ErrorKind::InvalidData => {
                Error::checkpoint(path, format!("{e}; expected a JSON object"))
            }
            _ => Error::io(path, e),
        })?;
        let value = serde_json::from_str(&text)
            .or_else(|e| serde_json::from_str(&quoted(&text)).map_err(|_| e))
            .map_err(|e| Error::checkpoint(path, format!("not valid JSON: {e}")))?;
        Self::from_value(path, value)
    }

    /// Reads a file that may be absent; one that is there and cannot be read is an error, not as
    /// good as absent.
    pub fn load_optional(path: &Path) -> Result<Option<Self>> {
        if path.try_exists().at_path(path)? {
            Self::load(path).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Wraps an object; `path` is what errors will name.
    pub fn from_value(path: &Path, value: Value) -> Result<Self> {
        match value {
            Value::Object(object) => Ok(Config {
                path: path.to_path_buf(),
                object,
            }),
            _ => Err(Error::checkpoint(path, "expected a JSON object at the top")),
        }
    }

    /// The file this came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error that names this file.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::checkpoint(&self.path, message)
    }

    /// A value; `null` counts as absent, as it does in `transformers`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Whether a key is there, be it null: some families take that for another value than their
    /// default.
    pub fn states(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// The family's name.
    pub fn model_type(&self) -> Result<&str> {
        self.get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| self.error("no `model_type`; expected a string"))
    }

    /// Whether this is the config of a family.
    pub fn is_type(&self, model_type: &str) -> bool {
        self.model_type().is_ok_and(|found| found == model_type)
    }

    /// Refuses another value of a switch than the one that is supported, which is also its default.
    ///
    /// # Errors
    /// `Checkpoint` naming the switch.
    pub fn only(&self, key: &str, supported: bool) -> Result<()> {
        if self.flag_or(key, supported)? == supported {
            return Ok(());
        }
        let message = format!(
            "`{key}`: expected {supported}, got {}; this variant is not supported",
            !supported
        );
        Err(self.error(message))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => read(v)
                .map(Some)
                .ok_or_else(|| self.error(format!("`{key}`: expected {what}, got {v}"))),
        }
    }

    /// A size: a positive integer below 2^31, so that products of sizes stay within 64 bits.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_opt(key)?
            .ok_or_else(|| self.error(format!("no `{key}`; expected a positive integer")))
    }

    /// A size, or `default` where the key is absent.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_opt(key)?.unwrap_or(default))
    }

    /// A size, where given.
    pub fn size_opt(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a positive integer below 2^31", |v| {
            v.as_u64()
                .filter(|n| (1..1 << 31).contains(n))
                .map(|n| n as usize)
        })
    }

    /// A whole number that may be zero, or `default`.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        let count = self.typed(key, "a whole number below 2^31", |v| {
            v.as_u64().filter(|n| *n < 1 << 31).map(|n| n as usize)
        })?;
        Ok(count.unwrap_or(default))
    }

    /// A finite number, or `default`.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self
            .typed(key, "a number", Value::as_f64)?
            .unwrap_or(default))
    }

    /// A flag, or `default`.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self
            .typed(key, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// A word, or `default`.
    pub fn word_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self
            .typed(key, "a string", Value::as_str)?
            .unwrap_or(default))
    }

    /// A nested object, where given, with the same getters.
    pub fn nested(&self, key: &str) -> Result<Option<Config>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Config {
                path: self.path.clone(),
                object: object.clone(),
            })),
            Some(v) => Err(self.error(format!("`{key}`: expected an object, got {v}"))),
        }
    }

    /// Token ids under a key, which may hold one id or a list.
    pub fn token_ids(&self, key: &str) -> Vec<u32> {
        match self.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(token_id).collect(),
            Some(v) => token_id(v).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The same with values where this one has none.
    #[must_use]
    pub fn with_defaults(&self, defaults: Value) -> Config {
        let mut filled = self.clone();
        if let Value::Object(defaults) = defaults {
            for (key, value) in defaults {
                if !self.states(&key) {
                    filled.set(&key, value);
                }
            }
        }
        filled
    }

    /// The list under a key.
    ///
    /// # Errors
    /// `Checkpoint` where it is no list.
    pub fn list(&self, key: &str) -> Result<Option<&Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    /// Replaces or adds a value under a path such as `text_config.hidden_size`.
    pub fn set_at(&mut self, path: &str, value: impl Into<Value>) {
        match path.split_once('.') {
            None => self.set(path, value),
            Some((outer, inner)) => {
                if let Some(Value::Object(object)) = self.object.get_mut(outer) {
                    object.insert(inner.to_owned(), value.into());
                }
            }
        }
    }

    /// Takes the value under such a path out.
    pub fn remove_at(&mut self, path: &str) {
        match path.split_once('.') {
            None => _ = self.remove(path),
            Some((outer, inner)) => {
                if let Some(Value::Object(object)) = self.object.get_mut(outer) {
                    object.shift_remove(inner);
                }
            }
        }
    }

    /// The value under such a path.
    pub fn get_at(&self, path: &str) -> Option<&Value> {
        match path.split_once('.') {
            None => self.get(path),
            Some((outer, inner)) => self.get(outer)?.get(inner).filter(|value| !value.is_null()),
        }
    }

    /// The same to change.
    pub fn get_at_mut(&mut self, path: &str) -> Option<&mut Value> {
        match path.split_once('.') {
            None => self.object.get_mut(path),
            Some((outer, inner)) => self.object.get_mut(outer)?.get_mut(inner),
        }
    }

    /// Replaces or adds a value, in place of the old one.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.object.insert(key.to_owned(), value.into());
    }

    /// Takes a key out; whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        // The order of the others stays.
        self.object.shift_remove(key).is_some()
    }

    /// The object, for hashing and reports.
    pub fn to_value(&self) -> Value {
        Value::Object(self.object.clone())
    }

    /// The text to write.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(&self.object)
            .map_err(|e| Error::Internal(format!("config.json cannot be written: {e}")))?;
        text.push('\n');
        Ok(bare(text))
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomic(path, self.to_json()?)
    }
}

fn token_id(v: &Value) -> Option<u32> {
    u32::try_from(v.as_u64()?).ok()
}
