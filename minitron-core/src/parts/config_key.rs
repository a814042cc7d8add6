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
    /// In the object that a list holds for each layer, so that layers may differ.
    Entry {
        /// Key of the list, or path.
        path: String,
        /// Path inside the layer's object: `ffn.intermediate_size`.
        inside: &'static str,
        /// What stands there.
        form: EntryForm,
    },
}

/// What a layer's object says of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryForm {
    /// The size; null where nothing is left.
    Size,
    /// Whether nothing is left.
    IsAbsent,
    /// How many units of the kind `of` there are for one of the kind `per`, 1 where the layer has
    /// none of those; null where nothing is left.
    Share {
        /// Query heads.
        of: &'static str,
        /// Key/value heads.
        per: &'static str,
    },
    /// `times` · size / (`over` · the size of the kind `of`), from which readers get the next
    /// multiple of `step`: left out where the size is none, null where nothing is left.
    Multiplier {
        /// Kind that it is relative to.
        of: &'static str,
        /// Numerator.
        times: u32,
        /// Denominator.
        over: u32,
        /// What readers round up to.
        step: usize,
    },
}

impl EntryForm {
    /// What is written for a size beside the sizes of other kinds in the same layer; none where the
    /// key is left out.
    pub fn written(self, size: usize, size_of: &dyn Fn(&str) -> usize) -> Option<Value> {
        match self {
            EntryForm::IsAbsent => Some(Value::Bool(size == 0)),
            _ if size == 0 => Some(Value::Null),
            EntryForm::Size => Some(size.into()),
            EntryForm::Share { of, per } => {
                let (all, units) = (size_of(of), size_of(per));
                Some(match all {
                    0 => Value::Null,
                    _ => all.checked_div(units).unwrap_or(1).into(),
                })
            }
            EntryForm::Multiplier {
                of,
                times,
                over,
                step,
            } => size.is_multiple_of(step).then(|| {
                let whole = f64::from(over) * size_of(of).max(1) as f64;
                Value::from(f64::from(times) * size as f64 / whole)
            }),
        }
    }
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

    /// A place in the object of each layer.
    pub fn entry(path: impl Into<String>, inside: &'static str, form: EntryForm) -> Self {
        ConfigKey::Entry {
            path: path.into(),
            inside,
            form,
        }
    }

    /// Whether each layer may have a size of its own there.
    pub fn is_by_layer(&self) -> bool {
        matches!(self, ConfigKey::PerLayer { .. } | ConfigKey::Entry { .. })
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
            | ConfigKey::Entry { path, .. }
            | ConfigKey::Pattern { path, .. } => path,
        }
    }

    /// Moves it into a part of the config, such as `text_config.`.
    pub(crate) fn enter(&mut self, scope: &str) {
        match self {
            ConfigKey::Scalar { path, .. }
            | ConfigKey::PerLayer { path }
            | ConfigKey::Entry { path, .. }
            | ConfigKey::Pattern { path, .. } => {
                path.insert_str(0, scope);
            }
        }
    }
}
