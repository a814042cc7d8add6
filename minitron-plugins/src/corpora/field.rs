//! Which part of a record is the document.

use minitron_core::contract::Document;
use serde_json::Value;

use super::record::{kind_of, names, paths_of};

/// What stands in the way, in words.
pub(super) type Missing = String;

/// The document of a record: the text or the token ids under `field`; several parts joined by `+`,
/// as they are.
///
/// A part is a key, or keys with a dot before each that lies deeper; a key that has the dot itself
/// wins. What is null is left out; none where all is.
///
/// # Errors
/// What was found instead, with the fields that are there.
pub(super) fn document(value: &Value, field: &str) -> Result<Option<Document>, Missing> {
    if !value.is_object() {
        return Err(format!(
            "expected an object with a string field `{field}`, got {}",
            kind_of(value)
        ));
    }
    let mut joined: Option<Document> = None;
    for name in parts(value, field) {
        let found = find(value, name);
        let part = match found {
            Some(Value::Null) => continue,
            Some(Value::String(text)) => Some(Document::Text(text.clone())),
            Some(Value::Array(list)) => ids(list).map(Document::Tokens),
            _ => None,
        };
        let Some(part) = part else {
            return Err(missing(value, name, found));
        };
        joined = Some(match (joined, part) {
            (None, part) => part,
            (Some(Document::Text(a)), Document::Text(b)) => Document::Text(a + &b),
            (Some(Document::Tokens(a)), Document::Tokens(b)) => Document::Tokens([a, b].concat()),
            _ => {
                return Err(format!(
                    "`{field}` joins text with token ids; name fields of one kind"
                ));
            }
        });
    }
    Ok(joined)
}

/// A field's parts; a key that has the `+` itself wins.
pub(super) fn parts<'f>(value: &Value, field: &'f str) -> Vec<&'f str> {
    if find(value, field).is_some() {
        vec![field]
    } else {
        field.split('+').collect()
    }
}

/// The value at a path; null where something on the way is.
pub(super) fn find<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let Value::Object(object) = value else {
        return if value.is_null() { Some(value) } else { None };
    };
    if let Some(found) = object.get(path) {
        return Some(found);
    }
    let dots = path
        .match_indices('.')
        .filter_map(|(at, _)| Some((path.get(..at)?, path.get(at + 1..)?)));
    dots.filter_map(|(key, rest)| find(object.get(key)?, rest))
        .next()
}

/// A list of token ids.
fn ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect()
}

fn missing(value: &Value, name: &str, found: Option<&Value>) -> Missing {
    let paths = paths_of(value);
    let found = found.map_or_else(
        || before(value, name).unwrap_or_else(|| "none of that name".to_owned()),
        kind_of,
    );
    let fields = names(paths.iter());
    format!(
        "expected a string field `{name}`, got {found}; its fields: {fields}; choose one with \
         `--field`"
    )
}

/// What the beginning of a path leads to, where the whole leads nowhere.
fn before(value: &Value, name: &str) -> Option<String> {
    let (start, _) = name.rsplit_once('.')?;
    match find(value, start) {
        Some(found) => Some(format!("none in `{start}`, {}", kind_of(found))),
        None => before(value, start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(text: &str) -> Result<Option<Document>, Missing> {
        Ok(Some(Document::Text(text.to_owned())))
    }

    #[test]
    fn a_dot_leads_deeper_and_a_key_that_has_it_wins() {
        let nested = json!({ "data": { "text": "deep", "more": { "body": "deeper" } }, "id": 1 });
        assert_eq!(document(&nested, "data.text"), text("deep"));
        assert_eq!(document(&nested, "data.more.body"), text("deeper"));
        assert_eq!(
            document(
                &json!({ "data": { "text": "deep" }, "data.text": "flat" }),
                "data.text"
            ),
            text("flat")
        );
        assert_eq!(
            document(&json!({ "a.b": { "c": "x" } }), "a.b.c"),
            text("x")
        );
        assert_eq!(
            document(&json!({ "a+b": "whole", "a": "x", "b": "y" }), "a+b"),
            text("whole")
        );
        let error = document(&nested, "text").unwrap_err();
        let expected = "expected a string field `text`, got none of that name; its fields: \
                        `data.text`, `data.more.body`, `id`; choose one with `--field`";
        assert_eq!(error, expected);
        assert!(
            document(&nested, "data")
                .unwrap_err()
                .contains("got an object with `text`, `more`;")
        );
    }

    #[test]
    fn parts_are_joined_and_nulls_are_left_out() {
        let record = json!({ "title": "A ", "text": "b", "none": null, "ids": [1, 2], "more": [3],
            "data": null });
        assert_eq!(document(&record, "title+text"), text("A b"));
        assert_eq!(document(&record, "none+text"), text("b"));
        assert_eq!(document(&record, "none"), Ok(None));
        assert_eq!(document(&record, "data.text"), Ok(None), "null on the way");
        assert_eq!(
            document(&record, "ids+more"),
            Ok(Some(Document::Tokens(vec![1, 2, 3])))
        );
        assert!(
            document(&record, "ids+text")
                .unwrap_err()
                .contains("joins text with token ids")
        );
        assert!(
            document(&record, "text+body")
                .unwrap_err()
                .contains("`body`, got none of that name")
        );
    }

    #[test]
    fn what_is_there_and_no_text_is_named() {
        let record = json!({ "messages": [{ "role": "user", "content": "hi" }], "tags": ["a"],
            "score": 0.5, "x": {} });
        for (field, found) in [
            (
                "messages",
                "`messages`, got an array of objects with `role`, `content`;",
            ),
            ("tags", "`tags`, got an array of strings;"),
            ("score", "`score`, got a number;"),
            ("x", "`x`, got an empty object;"),
            (
                "messages.content",
                "got none in `messages`, an array of objects with `role`, `content`;",
            ),
        ] {
            let error = document(&record, field).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
        assert!(
            document(&json!([1]), "text")
                .unwrap_err()
                .ends_with("got an array of numbers")
        );
    }
}
