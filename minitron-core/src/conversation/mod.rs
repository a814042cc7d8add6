//! Conversations as data: what was said by whom, as templates see it, read from records of the
//! usual layouts.

mod fields;
mod forms;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
pub use forms::Form;

/// One message: `role`, `content` and whatever else a template may read, in the order of the
/// record.
pub type Message = Map<String, Value>;

/// Roles that chat templates know. A misspelt one would be rendered by many templates, and would
/// never count.
const ROLES: [&str; 18] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
    "ipython",
    "observation",
    "environment",
    "context",
    "document",
    "documents",
    "control",
    "critic",
    "tools",
    "available_tools",
    "tool_call",
    "tool_response",
];

/// The field by which an answer counts (1, as without it) or does not (0).
const WEIGHT: &str = "weight";

/// Messages, and what is given to the template beside them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// At least one.
    pub messages: Vec<Message>,
    /// Descriptions of the tools at hand.
    pub tools: Option<Vec<Value>>,
    /// Texts at hand, for templates of retrieval.
    pub documents: Option<Vec<Value>>,
    /// Further variables of the template (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
    /// So many messages at the front are a prompt: what the assistant says there never counts.
    pub n_prompt: usize,
}

/// What one record of training data says.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// Messages for a chat template.
    Chat(Conversation),
    /// Plain text that no template touches; the completion alone counts, with the end-of-sequence
    /// token after it.
    Completion {
        /// Comes first, counts never.
        prompt: String,
        /// Follows at once, without a space.
        completion: String,
    },
}

impl Example {
    /// Reads a record in the layout that is named, or in the one that its fields show. `None` where
    /// none is named and the record shows none of them.
    ///
    /// # Errors
    /// `Data` saying which field or message was expected to hold what, and what it holds.
    pub fn from_record(record: &Value, named: Option<Form>) -> Result<Option<Self>> {
        forms::read(record, named)
    }
}

impl Example {
    /// Bytes of text, about.
    pub fn n_bytes(&self) -> usize {
        match self {
            Example::Completion { prompt, completion } => {
                prompt.len().saturating_add(completion.len())
            }
            Example::Chat(chat) => {
                let mut n_bytes = 0usize;
                for message in &chat.messages {
                    let text = Value::Object(message.clone()).to_string();
                    n_bytes = n_bytes.saturating_add(text.len());
                }
                n_bytes
            }
        }
    }
}

impl Conversation {
    /// A conversation of messages alone.
    ///
    /// # Errors
    /// `Data` naming the message that templates could not read.
    pub fn new(messages: Vec<Message>) -> Result<Self> {
        let conversation = Conversation {
            messages,
            ..Conversation::default()
        };
        conversation.check()?;
        Ok(conversation)
    }

    /// A user's message, after a system's where there is one.
    pub fn ask(system: Option<&str>, user: &str) -> Self {
        let system = system.map(|content| message("system", content));
        let messages = system.into_iter().chain([message("user", user)]).collect();
        Conversation {
            messages,
            ..Conversation::default()
        }
    }

    /// Appends a message.
    pub fn push(&mut self, role: &str, content: &str) {
        self.messages.push(message(role, content));
    }

    /// Refuses what no template could mean.
    pub fn check(&self) -> Result<()> {
        if self.messages.is_empty() {
            return Err(Error::Data(
                "the conversation is empty; expected at least one message".into(),
            ));
        }
        for (idx, message) in self.messages.iter().enumerate() {
            check_message(message)
                .map_err(|e| e.at(format!("message {}", idx.saturating_add(1))))?;
        }
        Ok(())
    }
}

/// A message with a text.
pub fn message(role: &str, content: &str) -> Message {
    Message::from_iter([
        ("role".to_owned(), role.into()),
        ("content".to_owned(), content.into()),
    ])
}

/// Whether a message is said not to count, as OpenAI's format for fine-tuning has it.
pub fn is_weightless(message: &Message) -> bool {
    message.get(WEIGHT).and_then(Value::as_f64) == Some(0.0)
}

/// Who speaks, where the message says it.
pub fn role_of(message: &Message) -> Option<&str> {
    message.get("role").and_then(Value::as_str)
}

fn check_message(message: &Message) -> Result<()> {
    let role = match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.as_str(),
        Some(Value::String(role)) => {
            let known = ROLES.join(", ");
            return Err(Error::Data(format!(
                "no role is called `{role}`; known: {known}"
            )));
        }
        Some(other) => return Err(expected("role", "a string", other)),
        None => {
            return Err(Error::Data(format!(
                "no `role` beside {}; expected one of {}",
                keys(message),
                ROLES[..4].join(", ")
            )));
        }
    };
    if let Some(weight) = message.get(WEIGHT).filter(|weight| !weight.is_null())
        && !weight
            .as_f64()
            .is_some_and(|weight| weight == 0.0 || weight == 1.0)
    {
        return Err(expected(
            WEIGHT,
            "0 (the answer does not count) or 1",
            weight,
        ));
    }
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => parts.iter().try_for_each(check_part),
        // What a tool answers may be any object; templates write it as JSON.
        Some(Value::Object(_)) if role == "tool" || role == "function" => Ok(()),
        None | Some(Value::Null) if says_otherwise(message) => Ok(()),
        None | Some(Value::Null) => Err(Error::Data(format!(
            "no `content` for {role}; only a message with `tool_calls` may go without"
        ))),
        Some(other) => Err(expected("content", "a string or a list of parts", other)),
    }
}

/// Whether there is something besides the content to render.
fn says_otherwise(message: &Message) -> bool {
    let others = [
        "tool_calls",
        "function_call",
        "reasoning_content",
        "thinking",
        "reasoning",
        "tool_responses",
    ];
    others.iter().any(|key| match message.get(*key) {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    })
}

/// A part of a content, as far as it is read here: images and the like are for the template to
/// refuse.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part {
    Text {
        #[expect(dead_code, reason = "it need only be there")]
        text: String,
    },
    #[serde(other)]
    Other,
}

fn check_part(part: &Value) -> Result<()> {
    if part.is_string() {
        return Ok(());
    }
    match Part::deserialize(part) {
        Ok(Part::Text { .. } | Part::Other) => Ok(()),
        Err(e) => Err(Error::Data(format!(
            "a part of `content`, {}: {e}",
            shown(part)
        ))),
    }
}

/// A field holds another kind of value.
pub(super) fn expected(field: &str, what: &str, found: &Value) -> Error {
    Error::Data(format!("`{field}`: expected {what}, got {}", shown(found)))
}

/// Names of an object's fields.
pub(super) fn keys(object: &Map<String, Value>) -> String {
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    if names.is_empty() {
        "no field at all".to_owned()
    } else {
        names.join(", ")
    }
}

/// A value as an error shows it: whole where it is short.
pub(super) fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= MOST {
        return text;
    }
    format!("{}…", text.chars().take(MOST).collect::<String>())
}
