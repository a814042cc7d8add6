//! A model's chat template: conversations in, text out, and which of it the assistant said.

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::clock::Moment;
use super::engine::{self, Engine};
use super::files::{self, Files};
use super::marks::TextMarks;
use minitron_core::conversation::{Conversation, Message};
use minitron_core::digest;
use minitron_core::error::{Error, Result};

/// The chat template of a model folder, with the special tokens that it writes.
#[derive(Debug)]
pub struct ChatTemplate {
    default: Option<Engine>,
    /// Taken instead where tools are at hand.
    tool_use: Option<Engine>,
    /// Names of all, for errors.
    names: Vec<String>,
    special_tokens: Map<String, Value>,
    digest: String,
    uses_clock: bool,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What the model reads, special tokens included: it is tokenised without adding any.
    pub text: String,
    /// What the assistant said, in bytes of the text, in order, apart: content and end of turn. A
    /// text may be cut after each.
    pub answers: Vec<Range<usize>>,
    /// Those of the answers that do not count: their messages have `weight` 0.
    pub weightless: Vec<Range<usize>>,
    /// Whether the template marks answers itself (`{% generation %}`), rather than them being found
    /// by rendering prefixes.
    pub marks: bool,
}

impl Rendered {
    /// A plain text whose completion alone counts.
    pub fn completion(prompt: &str, completion: &str) -> Self {
        let text = [prompt, completion].concat();
        let answer = prompt.len()..text.len();
        Rendered {
            text,
            answers: std::iter::once(answer).collect(),
            weightless: Vec::new(),
            marks: false,
        }
    }

    /// Answers in characters of the text, as tokenizers count them.
    pub fn answers_in_chars(&self) -> Vec<Range<usize>> {
        self.in_chars(&self.answers)
    }

    /// Ranges of bytes, in order and apart, in characters of the text.
    pub(crate) fn in_chars(&self, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
        let (mut at_byte, mut at_char) = (0, 0);
        let mut in_chars = Vec::with_capacity(ranges.len());
        for range in ranges {
            let start = at_char + self.n_chars(at_byte..range.start);
            at_char = start + self.n_chars(range.clone());
            at_byte = range.end;
            in_chars.push(start..at_char);
        }
        in_chars
    }

    /// Characters in a range of bytes.
    fn n_chars(&self, bytes: Range<usize>) -> usize {
        self.text.get(bytes).map_or(0, |text| text.chars().count())
    }
}

impl ChatTemplate {
    /// Reads the template of a model folder, by the precedence of `transformers`:
    /// `chat_template.jinja` and `additional_chat_templates`, else `chat_template` in
    /// tokenizer_config.json, else chat_template.json. `None` where the folder has none. `now` is
    /// what templates take for the current time.
    ///
    /// # Errors
    /// `Checkpoint` when a file is malformed, `Data` naming the template that cannot be compiled.
    pub fn load(dir: &Path, now: Moment) -> Result<Option<Self>> {
        let Some(files) = Files::load(dir)? else {
            return Ok(None);
        };
        Self::from_files(&files, now).map(Some)
    }

    /// A template given as text; `origin` is what errors name, `special_tokens` what the template
    /// may write.
    ///
    /// # Errors
    /// `Data` when it cannot be compiled.
    pub fn from_source(
        origin: &str,
        source: &str,
        special_tokens: Map<String, Value>,
        now: Moment,
    ) -> Result<Self> {
        let templates = Vec::from([(
            files::DEFAULT.to_owned(),
            origin.to_owned(),
            source.to_owned(),
        )]);
        Self::from_files(
            &Files {
                templates,
                special_tokens,
            },
            now,
        )
    }

    fn from_files(files: &Files, now: Moment) -> Result<Self> {
        let uses_clock = files
            .templates
            .iter()
            .any(|(.., source)| source.contains("strftime_now"));
        let moment = if uses_clock {
            now.to_string()
        } else {
            String::new()
        };
        let said = format!(
            "{:?} {} {moment}",
            files.templates,
            Value::Object(files.special_tokens.clone())
        );
        Ok(ChatTemplate {
            default: compiled(files, files::DEFAULT, now)?,
            tool_use: compiled(files, files::TOOL_USE, now)?,
            names: files
                .templates
                .iter()
                .map(|(name, ..)| name.clone())
                .collect(),
            special_tokens: files.special_tokens.clone(),
            digest: digest::of_text(&said),
            uses_clock,
        })
    }

    /// Of all that decides what a conversation becomes, the time included where the template asks
    /// for it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether what is rendered depends on the time.
    pub fn uses_clock(&self) -> bool {
        self.uses_clock
    }

    /// The text alone, with the words that open the assistant's turn at its end where they are
    /// asked for.
    ///
    /// # Errors
    /// `Data` naming the template, with what it raises or where it fails.
    pub fn text(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        let call = self.call(conversation)?;
        engine::apart(call.origin(), || {
            call.text(&conversation.messages, add_generation_prompt)
        })
    }

    /// The template for a conversation.
    pub(super) fn call<'c>(&'c self, conversation: &'c Conversation) -> Result<Call<'c>> {
        conversation.check()?;
        Ok(Call {
            engine: self.engine(conversation)?,
            template: self,
            conversation,
        })
    }

    fn engine(&self, conversation: &Conversation) -> Result<&Engine> {
        let with_tools = self
            .tool_use
            .as_ref()
            .filter(|_| conversation.tools.is_some());
        with_tools.or(self.default.as_ref()).ok_or_else(|| {
            let names = self.names.join(", ");
            Error::Data(format!(
                "the model has several chat templates ({names}), but none is called `default`"
            ))
        })
    }
}

/// A template by its name, where there is one.
fn compiled(files: &Files, name: &str, now: Moment) -> Result<Option<Engine>> {
    let mut templates = files.templates.iter();
    match templates.find(|(template, ..)| template == name) {
        Some((_, origin, source)) => Engine::compile(origin, source, now).map(Some),
        None => Ok(None),
    }
}

/// A conversation and the template chosen for it.
pub(super) struct Call<'c> {
    pub(super) engine: &'c Engine,
    template: &'c ChatTemplate,
    pub(super) conversation: &'c Conversation,
}

impl Call<'_> {
    /// What errors name.
    pub(super) fn origin(&self) -> &str {
        self.engine.origin()
    }

    /// Other messages in the place of the conversation's.
    pub(super) fn text(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.engine
            .render(self.variables(messages, add_generation_prompt), None)
    }

    /// Between marks, which are looked for in a second rendering: it must be the first in all else.
    pub(super) fn marked(
        &self,
        text: &str,
        add_generation_prompt: bool,
    ) -> Result<Vec<Range<usize>>> {
        let all = self.marked_in(
            &self.conversation.messages,
            add_generation_prompt,
            Some(text),
        )?;
        let n_prompt = self.conversation.n_prompt;
        if n_prompt == 0 {
            return Ok(all);
        }
        let prompt = self
            .conversation
            .messages
            .get(..n_prompt)
            .unwrap_or_default();
        let in_prompt = self.marked_in(prompt, true, None)?;
        Ok(all.into_iter().skip(in_prompt.len()).collect())
    }

    fn marked_in(
        &self,
        messages: &[Message],
        prompt: bool,
        expected: Option<&str>,
    ) -> Result<Vec<Range<usize>>> {
        let variables = self.variables(messages, prompt);
        let inputs = Value::Object(variables.clone()).to_string();
        let texts = [inputs.as_str(), expected.unwrap_or_default()];
        let Some(marks) = TextMarks::absent_from(&texts) else {
            let why = "the conversation holds all the characters by which `{% generation %}` \
                       blocks are found";
            return Err(self.unclear(why));
        };
        let marked = self.engine.render(variables, Some(marks))?;
        match marks.cut(&marked) {
            Some((text, ranges)) if expected.is_none_or(|expected| expected == text) => Ok(ranges),
            _ => Err(self.unclear(
                "the template works on the text of its own `{% generation %}` blocks, so where it \
                 ends up is unknown; put them around what is printed",
            )),
        }
    }

    fn unclear(&self, why: &str) -> Error {
        Error::Data(format!("{}: {why}", self.origin()))
    }

    /// What the template sees, as `transformers` prepares it: no message has a field that is null,
    /// and reasoning goes by all the names that templates read.
    fn variables(&self, messages: &[Message], add_generation_prompt: bool) -> Map<String, Value> {
        let mut variables = self.template.special_tokens.clone();
        variables.extend(self.conversation.variables.clone());
        let messages: Vec<Value> = messages.iter().map(prepared).collect();
        variables.insert("messages".into(), messages.into());
        variables.insert("tools".into(), list_or_null(&self.conversation.tools));
        variables.insert(
            "documents".into(),
            list_or_null(&self.conversation.documents),
        );
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        variables
    }
}

fn list_or_null(list: &Option<Vec<Value>>) -> Value {
    list.clone().map_or(Value::Null, Value::Array)
}

/// Names that reasoning goes by; the first is the one that most templates read.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

fn prepared(message: &Message) -> Value {
    let fields = message.iter().filter(|(_, value)| !value.is_null());
    let mut message: Message = fields
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if let Some(reasoning) = REASONING
        .iter()
        .find_map(|name| message.get(*name))
        .cloned()
    {
        let mut with_reasoning = Message::new();
        with_reasoning.insert("thinking".into(), reasoning.clone());
        with_reasoning.extend(message);
        with_reasoning.insert("reasoning_content".into(), reasoning);
        message = with_reasoning;
    }
    Value::Object(message)
}
