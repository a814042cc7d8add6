//! A plugin as it is named: `activation:batch=l2,seq=mean`, or `{ type = "activation", batch = "l2"
//! }`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest;
use crate::error::{Error, Result};

/// Tag and parameters of a plugin.
///
/// ```
/// use minitron_core::plugin_spec::PluginSpec;
///
/// let spec: PluginSpec = "activation:batch=l2,seq=mean".parse()?;
/// assert_eq!(spec, PluginSpec::bare("activation").with("batch", "l2").with("seq", "mean"));
/// assert_eq!(spec.to_string(), "activation:batch=l2,seq=mean");
/// # Ok::<(), minitron_core::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PluginSpec {
    /// Public name.
    #[serde(rename = "type")]
    pub tag: String,
    /// Parameters; absent ones take their defaults.
    #[serde(flatten)]
    pub params: Map<String, Value>,
}

impl PluginSpec {
    /// A plugin with all defaults.
    pub fn bare(tag: &str) -> Self {
        PluginSpec {
            tag: tag.to_owned(),
            params: Map::new(),
        }
    }

    /// The same with one more parameter.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.params.insert(key.to_owned(), value.into());
        self
    }

    /// The files that the plugin reads: parameters called `path`, or `reference` for what it
    /// compares with.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, PathBuf)> + '_ {
        ["path", "reference"]
            .into_iter()
            .filter_map(|key| Some((key, PathBuf::from(self.params.get(key)?.as_str()?))))
    }

    /// Digests of those files: what a plugin does follows from them.
    ///
    /// # Errors
    /// `Io` for a file that cannot be read.
    pub fn digests(specs: &[PluginSpec]) -> Result<Vec<String>> {
        specs
            .iter()
            .flat_map(PluginSpec::paths)
            .map(|(_, path)| digest::of_file(&path))
            .collect()
    }

    /// The same with its relative paths taken from `dir`.
    #[must_use]
    pub fn relative_to(self, dir: &Path) -> Self {
        let paths: Vec<_> = self.paths().collect();
        let mut spec = self;
        for (key, path) in paths {
            spec = spec.with(key, dir.join(path).to_string_lossy().as_ref());
        }
        spec
    }

    /// Takes out a parameter that belongs to the engine rather than the plugin (`as`, `weight`).
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.params.shift_remove(key)
    }
}

impl FromStr for PluginSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (tag, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut spec = PluginSpec::bare(tag.trim());
        for pair in rest.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::Recipe(format!(
                    "`{text}`: expected `name` or `name:key=value,key=value`, got `{pair}`"
                ))
            })?;
            let (key, value) = (key.trim(), value.trim());
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            if spec.params.insert(key.to_owned(), value).is_some() {
                return Err(Error::Recipe(format!("`{text}`: `{key}` is given twice")));
            }
        }
        if spec.tag.is_empty() {
            return Err(Error::Recipe(format!(
                "`{text}`: expected a plugin's name before the colon"
            )));
        }
        Ok(spec)
    }
}

impl fmt::Display for PluginSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.tag)?;
        for (idx, (key, value)) in self.params.iter().enumerate() {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            write!(f, "{}{key}={text}", if idx == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}
