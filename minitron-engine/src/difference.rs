//! Where two JSON objects differ.

use serde_json::Value;

/// Paths of the values of `new` that differ from those of `old`: `settings.lr`.
pub(crate) fn differing_keys(old: &Value, new: &Value) -> Vec<String> {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return Vec::new();
    };
    let mut keys = Vec::new();
    for (key, value) in new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value))
    {
        let inner = old
            .get(key)
            .map_or_else(Vec::new, |old| differing_keys(old, value));
        if inner.is_empty() {
            keys.push(key.clone());
        }
        keys.extend(inner.into_iter().map(|inner| format!("{key}.{inner}")));
    }
    keys
}
