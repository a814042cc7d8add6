//! Records that hold a conversation, or a prompt with its completion, rather than one text.

use std::path::Path;

use minitron_core::contract::Document;
use minitron_core::conversation::{Example, Form};
use minitron_core::error::Result;
use serde_json::{Map, Value};

use super::record::Record;
use super::{default_field, field};

/// What a template may read beside the messages.
pub(super) const BESIDE: [&str; 5] = [
    "tools",
    "documents",
    "chat_template_kwargs",
    "system",
    "history",
];

/// The layout that is named.
///
/// # Errors
/// `Recipe` for one that is none.
pub(super) fn form_of(name: Option<&str>) -> Result<Option<Form>> {
    name.map(str::parse::<Form>).transpose()
}

/// The document of a record: by the layout that is named, else the text or the messages under
/// `field`, else by the layout that its fields show. None where it is null.
///
/// # Errors
/// `Data` with the record's place, what was expected and what was found.
pub(super) fn document(
    path: &Path,
    record: &Record,
    field: &str,
    form: Option<Form>,
) -> Result<Option<Document>> {
    let Record { place, value } = record;
    let example = match (form, field::find(value, field)) {
        (Some(form), _) => Example::from_record(value, Some(form)),
        (None, Some(Value::Array(list))) if list.first().is_some_and(Value::is_object) => {
            Example::from_record(&alone(value, list), None)
        }
        (None, None) if *field == *default_field() => Example::from_record(value, None),
        _ => Ok(None),
    };
    let example = example.map_err(|error| error.at(format!("{}: {place}", path.display())))?;
    match example {
        Some(example) => Ok(Some(Document::Example(Box::new(example)))),
        None => super::document(path, record, field),
    }
}

/// Messages under the name that says so, and what stands beside them.
fn alone(record: &Value, messages: &[Value]) -> Value {
    let mut fields = Map::new();
    for key in BESIDE {
        fields.extend(record.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    fields.insert("messages".to_owned(), Value::Array(messages.to_vec()));
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::super::record::Place;
    use super::*;
    use serde_json::json;

    fn read(value: Value, field: &str, form: Option<Form>) -> Result<Option<Document>> {
        document(
            Path::new("x.jsonl"),
            &Record {
                place: Place::Line(3),
                value,
            },
            field,
            form,
        )
    }

    fn n_messages(document: Result<Option<Document>>) -> usize {
        match document.unwrap().unwrap() {
            Document::Example(example) => match *example {
                Example::Chat(chat) => chat.messages.len(),
                Example::Completion { .. } => 0,
            },
            other => panic!("{other:?} is no conversation"),
        }
    }

    #[test]
    fn conversations_are_recognised_or_named_and_a_text_stays_one() {
        let turns =
            json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }]);
        let shared = json!([{ "from": "human", "value": "a" }, { "from": "gpt", "value": "b" }]);
        assert_eq!(
            n_messages(read(json!({ "messages": turns }), "text", None)),
            2
        );
        assert_eq!(
            n_messages(read(json!({ "conversations": shared }), "text", None)),
            2
        );
        assert_eq!(
            n_messages(read(
                json!({ "data": { "talk": turns } }),
                "data.talk",
                None
            )),
            2
        );
        assert_eq!(
            n_messages(read(
                json!({ "prompt": "a", "completion": "b" }),
                "text",
                None
            )),
            0
        );
        assert_eq!(
            n_messages(read(
                json!({ "instruction": "a", "output": "b" }),
                "text",
                None
            )),
            2
        );
        let both = json!({ "text": "plain", "messages": turns });
        assert_eq!(
            read(both.clone(), "text", None).unwrap(),
            Some(Document::Text("plain".to_owned()))
        );
        assert_eq!(n_messages(read(both, "text", Some(Form::Messages))), 2);
    }

    #[test]
    fn what_is_no_conversation_is_named_with_its_place() {
        let says = |value: Value, form| read(value, "text", form).unwrap_err().to_string();
        let wrong_role = json!({ "messages": [{ "role": "asistant", "content": "b" }] });
        let said = says(wrong_role, None);
        assert!(
            said.contains("x.jsonl: line 3: message 1")
                && said.contains("no role is called `asistant`"),
            "{said}"
        );
        assert!(
            says(json!({ "other": 1 }), None)
                .contains("expected a string field `text`, got none of that name")
        );
        assert!(says(json!({ "text": "a" }), Some(Form::Alpaca)).contains("no `instruction`"));
    }
}
