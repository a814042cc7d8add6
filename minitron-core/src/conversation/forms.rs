//! The layouts that conversations are published in.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::fields::{filled_text, has_all, list_beside, missing, needed_text, word};
use super::{Conversation, Example, Message, expected, message, role_of};
use crate::error::{Error, Result};

/// A layout of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `messages`, each with `role` and `content`; `tools` beside them.
    Messages,
    /// `conversations`, each with `from` and `value`; `system` and `tools` beside them.
    ShareGpt,
    /// `prompt` and `completion`, both text or both lists of messages.
    PromptCompletion,
    /// `instruction`, `input` and `output`; `system` and `history` beside them.
    Alpaca,
}

impl Form {
    /// All layouts, in the order in which a record is tried.
    pub const ALL: [Form; 4] = [
        Form::Messages,
        Form::ShareGpt,
        Form::PromptCompletion,
        Form::Alpaca,
    ];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        match self {
            Form::Messages => "messages",
            Form::ShareGpt => "sharegpt",
            Form::PromptCompletion => "prompt_completion",
            Form::Alpaca => "alpaca",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Form {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Form::ALL.into_iter().find(|form| form.name() == name);
        found.ok_or_else(|| {
            Error::unknown("layout of conversations", name, Form::ALL.map(Form::name))
        })
    }
}

/// Field names in the order in which they are looked for.
const MESSAGES: [&str; 3] = ["messages", "conversation", "conversations"];
const SHARE_GPT: [&str; 3] = ["conversations", "conversation", "messages"];

/// See [`Example::from_record`].
pub(super) fn read(record: &Value, named: Option<Form>) -> Result<Option<Example>> {
    let fields = match record {
        Value::Object(fields) => fields,
        // A record that is the list itself.
        Value::Array(turns)
            if named.is_none_or(|form| matches!(form, Form::Messages | Form::ShareGpt)) =>
        {
            let Some(form) = named.or_else(|| form_of(turns)) else {
                return Ok(None);
            };
            return turns_of(form, turns, &Map::new()).map(Some);
        }
        other if named.is_some() => return Err(expected("record", "a JSON object", other)),
        _ => return Ok(None),
    };
    match named {
        Some(Form::Messages) => listed(Form::Messages, &MESSAGES, fields).map(Some),
        Some(Form::ShareGpt) => listed(Form::ShareGpt, &SHARE_GPT, fields).map(Some),
        Some(Form::PromptCompletion) => prompt_completion(fields).map(Some),
        Some(Form::Alpaca) => alpaca(fields).map(Some),
        None => recognised(fields),
    }
}

fn recognised(fields: &Map<String, Value>) -> Result<Option<Example>> {
    if let Some(turns) = MESSAGES
        .iter()
        .find_map(|key| fields.get(*key))
        .and_then(Value::as_array)
    {
        let form = form_of(turns).unwrap_or(Form::Messages);
        return turns_of(form, turns, fields).map(Some);
    }
    if has_all(&["prompt", "completion"], fields) {
        return prompt_completion(fields).map(Some);
    }
    if has_all(&["instruction", "output"], fields) {
        return alpaca(fields).map(Some);
    }
    let mut found: Vec<(&str, Form, &Vec<Value>)> = Vec::new();
    for (name, value) in fields {
        if let Some(turns) = value.as_array()
            && let Some(form) = form_of(turns)
        {
            found.push((name, form, turns));
        }
    }
    match found.as_slice() {
        [] => Ok(None),
        [(_, form, turns)] => turns_of(*form, turns, fields).map(Some),
        several => {
            let names: Vec<&str> = several.iter().map(|(name, ..)| *name).collect();
            let message = format!(
                "the fields {} all hold conversations; keep one of them, called `messages`",
                names.join(", ")
            );
            Err(Error::Data(message))
        }
    }
}

/// What the first turn shows.
fn form_of(turns: &[Value]) -> Option<Form> {
    let first = turns.first()?.as_object()?;
    if first.contains_key("role")
        && (first.contains_key("content") || first.contains_key("tool_calls"))
    {
        return Some(Form::Messages);
    }
    (first.contains_key("from") && first.contains_key("value")).then_some(Form::ShareGpt)
}

/// Turns under the first of the names that is there.
fn listed(form: Form, names: &[&str], fields: &Map<String, Value>) -> Result<Example> {
    match names
        .iter()
        .find_map(|name| fields.get(*name).map(|value| (name, value)))
    {
        Some((_, Value::Array(turns))) => turns_of(form, turns, fields),
        Some((name, other)) => Err(expected(name, "a list of messages", other)),
        None => {
            let name = names.first().copied().unwrap_or_default();
            Err(missing(name, form, fields))
        }
    }
}

fn turns_of(form: Form, turns: &[Value], fields: &Map<String, Value>) -> Result<Example> {
    let mut messages = match form {
        Form::ShareGpt => turns
            .iter()
            .enumerate()
            .map(|(idx, turn)| share_gpt(turn).map_err(|e| e.at(place(idx))))
            .collect::<Result<Vec<_>>>()?,
        _ => objects("messages", turns)?,
    };
    let opens = messages.first().and_then(role_of) == Some("system");
    let system = fields
        .get("system")
        .and_then(Value::as_str)
        .filter(|system| !system.is_empty());
    if let (Form::ShareGpt, Some(system), false) = (form, system, opens) {
        messages.insert(0, message("system", system));
    }
    conversation(messages, 0, fields).map(Example::Chat)
}

fn objects(field: &str, turns: &[Value]) -> Result<Vec<Message>> {
    let mut messages = Vec::with_capacity(turns.len());
    for (idx, turn) in turns.iter().enumerate() {
        match turn {
            Value::Object(message) => messages.push(message.clone()),
            other => {
                return Err(expected(field, "messages that are objects", other).at(place(idx)));
            }
        }
    }
    Ok(messages)
}

/// How errors name a message.
fn place(idx: usize) -> String {
    format!("message {}", idx.saturating_add(1))
}

/// With what stands beside the messages.
fn conversation(
    messages: Vec<Message>,
    n_prompt: usize,
    fields: &Map<String, Value>,
) -> Result<Conversation> {
    let variables = match fields.get("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(variables)) => variables.clone(),
        Some(other) => return Err(expected("chat_template_kwargs", "an object", other)),
    };
    let conversation = Conversation {
        messages,
        tools: list_beside("tools", fields)?,
        documents: list_beside("documents", fields)?,
        variables,
        n_prompt,
    };
    conversation.check()?;
    Ok(conversation)
}

fn share_gpt(turn: &Value) -> Result<Message> {
    let Value::Object(fields) = turn else {
        return Err(expected("conversations", "objects", turn));
    };
    let (from, value) = (word("from", fields)?, word("value", fields)?);
    let mut message = match from {
        "human" | "user" => message("user", value),
        "gpt" | "assistant" | "chatgpt" | "bot" | "bing" | "bard" | "model" => {
            message("assistant", value)
        }
        "system" | "developer" => message(from, value),
        "tool" | "function_response" | "function-response" | "observation" | "ipython" => {
            message("tool", value)
        }
        "function_call" | "tool_call" => calling(value)?,
        other => {
            let known = "human, gpt, system, tool, function_call, observation";
            return Err(Error::Data(format!(
                "no speaker is called `{other}`; known: {known}"
            )));
        }
    };
    let rest = fields
        .iter()
        .filter(|(key, _)| !["from", "value"].contains(&key.as_str()));
    for (key, value) in rest {
        if !message.contains_key(key) {
            message.insert(key.clone(), value.clone());
        }
    }
    Ok(message)
}

/// An assistant that calls tools: JSON with `name` and `arguments`, once or in a list.
fn calling(value: &str) -> Result<Message> {
    let parsed: Value = serde_json::from_str(value).map_err(|e| no_call(&e.to_string()))?;
    let parsed = match parsed {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    let mut calls = Vec::with_capacity(parsed.len());
    for call in parsed {
        match call {
            Value::Object(call) if call.get("name").is_some_and(Value::is_string) => {
                calls.push(serde_json::json!({ "type": "function", "function": call }));
            }
            other => return Err(no_call(&super::shown(&other))),
        }
    }
    let fields = [
        ("role".to_owned(), Value::from("assistant")),
        ("tool_calls".to_owned(), Value::Array(calls)),
    ];
    Ok(Message::from_iter(fields))
}

fn no_call(got: &str) -> Error {
    Error::Data(format!(
        "a function call: expected JSON with `name` and `arguments`, got {got}"
    ))
}

fn prompt_completion(fields: &Map<String, Value>) -> Result<Example> {
    let [prompt, completion] = ["prompt", "completion"].map(|name| {
        fields
            .get(name)
            .ok_or_else(|| missing(name, Form::PromptCompletion, fields))
    });
    match (prompt?, completion?) {
        (Value::String(prompt), Value::String(completion)) => Ok(Example::Completion {
            prompt: prompt.clone(),
            completion: completion.clone(),
        }),
        (Value::Array(prompt), Value::Array(completion)) => {
            let mut messages = objects("prompt", prompt)?;
            let n_prompt = messages.len();
            messages.extend(objects("completion", completion)?);
            conversation(messages, n_prompt, fields).map(Example::Chat)
        }
        (Value::String(_), other) => Err(expected("completion", "text, as `prompt` is", other)),
        (Value::Array(_), other) => Err(expected(
            "completion",
            "a list of messages, as `prompt` is",
            other,
        )),
        (other, _) => Err(expected("prompt", "text or a list of messages", other)),
    }
}

/// The user says the instruction, and the input after a blank line.
fn alpaca(fields: &Map<String, Value>) -> Result<Example> {
    let mut messages: Vec<Message> = Vec::new();
    if let Some(system) = filled_text("system", fields)? {
        messages.push(message("system", system));
    }
    for (user, assistant) in history(fields)? {
        messages.extend([message("user", &user), message("assistant", &assistant)]);
    }
    let instruction = needed_text("instruction", Form::Alpaca, fields)?;
    let asked = match filled_text("input", fields)? {
        Some(input) => format!("{instruction}\n\n{input}"),
        None => instruction.to_owned(),
    };
    messages.push(message("user", &asked));
    messages.push(message(
        "assistant",
        needed_text("output", Form::Alpaca, fields)?,
    ));
    conversation(messages, 0, fields).map(Example::Chat)
}

/// Earlier turns: pairs of what was asked and answered.
fn history(fields: &Map<String, Value>) -> Result<Vec<(String, String)>> {
    let pairs = match fields.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => return Err(expected("history", "a list of pairs", other)),
    };
    let mut turns = Vec::with_capacity(pairs.len());
    for pair in pairs {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(user), Value::String(assistant)]) => {
                turns.push((user.clone(), assistant.clone()));
            }
            _ => {
                let pairs = "pairs of a question and an answer";
                return Err(expected("history", pairs, pair));
            }
        }
    }
    Ok(turns)
}
