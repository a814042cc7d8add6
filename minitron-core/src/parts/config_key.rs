//! Where config.json states a size, and in what form.

use serde_json::Value;

/// An entry of config.json that follows from sizes. Its form decides which sizes are legal: one
/// number for all layers makes them alike, a list lets them differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigKey {
    /// One number for all layers: `times` · size + `plus`. A head has two channels for each pair,
    /// and those that do not turn.
    Scalar {
        /// Key, or path.
        path: String,
        /// Factor of the size.
        times: usize,
        /// What is there whatever the size.
        plus: usize,
    },
    /// A list with the size of each layer, 0 where a layer has none.
    PerLayer {
        /// Key, or path.
        path: String,
    },
    /// Of the depth: what the config says of each layer, or implies by its index. Written out for
    /// the layers that stay.
    Pattern {
        /// Key, or path.
        path: String,
        /// Layer by layer.
        values: Vec<Value>,
        /// How they are written.
        form: PatternForm,
    },
}

/// How a config states a value for each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternForm {
    /// As a list of them.
    List,
    /// As one word, of which each layer has a letter: `M-M*`.
    Letters,
    /// As a list of the layers where it is true.
    Indices,
}

impl PatternForm {
    /// What is written of the values of the layers that are there.
    pub fn written(self, values: Vec<Value>) -> Value {
        match self {
            PatternForm::List => Value::Array(values),
            PatternForm::Letters => {
                let letters: String = values.iter().filter_map(Value::as_str).collect();
                Value::from(letters)
            }
            PatternForm::Indices => {
                let is_true = |(_, value): &(usize, &Value)| **value == Value::Bool(true);
                let layers = values.iter().enumerate().filter(is_true);
                layers.map(|(layer, _)| layer).collect()
            }
        }
    }
}

impl ConfigKey {
    /// The size itself, once for all layers.
    pub fn scalar(path: impl Into<String>) -> Self {
        ConfigKey::Scalar {
            path: path.into(),
            times: 1,
            plus: 0,
        }
    }

    /// A list of sizes.
    pub fn per_layer(path: impl Into<String>) -> Self {
        ConfigKey::PerLayer { path: path.into() }
    }

    /// A value for each layer.
    pub fn pattern(path: impl Into<String>, values: Vec<Value>) -> Self {
        ConfigKey::pattern_as(PatternForm::List, path, values)
    }

    /// The same in another form.
    pub fn pattern_as(form: PatternForm, path: impl Into<String>, values: Vec<Value>) -> Self {
        ConfigKey::Pattern {
            path: path.into(),
            values,
            form,
        }
    }

    /// Key in config.json, or path.
    pub fn path(&self) -> &str {
        match self {
            ConfigKey::Scalar { path, .. }
            | ConfigKey::PerLayer { path }
            | ConfigKey::Pattern { path, .. } => path,
        }
    }

    /// Moves it into a part of the config, such as `text_config.`.
    pub(crate) fn enter(&mut self, scope: &str) {
        match self {
            ConfigKey::Scalar { path, .. }
            | ConfigKey::PerLayer { path }
            | ConfigKey::Pattern { path, .. } => {
                path.insert_str(0, scope);
            }
        }
    }
}
