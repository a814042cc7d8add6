//! A template compiled and rendered within limits.

use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Serde};
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;

use super::clock::Moment;
use super::marks::{self, TextMarks};
use super::{python, source};
use minitron_core::error::{Error, Result};

/// Steps of a rendering, at least. A step pays for 64 bytes of text or data made.
const STEPS: u64 = 1_000_000;

/// Steps for each byte that a conversation has, and at most so many in all.
const STEPS_PER_BYTE: u64 = 2;
const MOST_STEPS: u64 = 1 << 26;

/// Bytes of a template; the longest published ones have a tenth.
const LONGEST_TEMPLATE: usize = 256 << 10;

/// Calls within calls, and blocks within blocks.
const DEEPEST: usize = 200;

/// Room for values within values, as deep as a template of that length can write them, in every
/// walk over them.
const STACK: usize = 64 << 20;

/// Characters of an error that a template words.
const LONGEST_MESSAGE: usize = 1000;

const NAME: &str = "chat template";

/// One template, ready to be rendered any number of times.
#[derive(Debug)]
pub(super) struct Engine {
    /// What errors name: a file, and the template's name where it holds several.
    origin: String,
    env: Environment<'static>,
    has_marks: bool,
}

/// Runs work with a stack that nothing overflows, and without what panics in it: an engine is a
/// stranger's code on a stranger's template.
pub(super) fn apart<T: Send>(origin: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK)
            .spawn_scoped(scope, work);
        let worker = worker.map_err(|e| Error::io(origin, e))?;
        worker.join().unwrap_or_else(|_| {
            Err(Error::Data(format!(
                "{origin}: the template contradicts itself"
            )))
        })
    })
}

impl Engine {
    pub(super) fn compile(origin: &str, text: &str, now: Moment) -> Result<Self> {
        if text.len() > LONGEST_TEMPLATE {
            return Err(Error::Data(format!(
                "{origin}: a template of {} bytes; at most {LONGEST_TEMPLATE}",
                text.len()
            )));
        }
        let prepared =
            source::prepare(text).map_err(|e| Error::Data(format!("{origin}: {}", e.message())))?;
        let env = apart(origin, || {
            let mut env = environment(now)?;
            let added = env.add_template_owned(NAME, prepared.source);
            added.map_err(|e| {
                let said = said(&e);
                Error::Data(format!("{origin}: not a template that can be read: {said}"))
            })?;
            Ok(env)
        })?;
        Ok(Engine {
            origin: origin.to_owned(),
            env,
            has_marks: prepared.has_marks,
        })
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn has_marks(&self) -> bool {
        self.has_marks
    }

    /// The text; with marks, what they enclose stands between their characters. To be called by
    /// [`apart`].
    pub(super) fn render(
        &self,
        mut variables: Map<String, serde_json::Value>,
        marks: Option<TextMarks>,
    ) -> Result<String> {
        let steps = size_of(&variables)
            .saturating_mul(STEPS_PER_BYTE)
            .clamp(STEPS, MOST_STEPS);
        if let Some(marks) = marks {
            variables.insert(marks::CHARACTERS.into(), marks.characters().into());
        }
        let roomy;
        let env = match steps == STEPS {
            true => &self.env,
            false => {
                let mut env = self.env.clone();
                env.set_fuel(Some(steps));
                roomy = env;
                &roomy
            }
        };
        let rendered = env
            .get_template(NAME)
            .and_then(|template| template.render(Serde(&variables)));
        rendered.map_err(|e| {
            let message = match e.kind() {
                ErrorKind::OutOfFuel => {
                    format!("the template loops or explodes: it was stopped after {steps} steps")
                }
                _ => said(&e),
            };
            Error::Data(format!("{}: {message}", self.origin))
        })
    }
}

fn environment(now: Moment) -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    env.set_syntax(syntax.map_err(|e| Error::Internal(format!("the syntax of templates: {e}")))?);
    env.set_recursion_limit(DEEPEST);
    env.set_fuel(Some(STEPS));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    python::install(&mut env);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", move |format: &str| {
        now.format(format).ok_or_else(|| {
            let message = "strftime_now: not a format of Python's";
            minijinja::Error::new(ErrorKind::InvalidOperation, message)
        })
    });
    env.add_function(marks::FUNCTION, marks::generation);
    Ok(env)
}

/// Bytes of all texts, about.
fn size_of(variables: &Map<String, serde_json::Value>) -> u64 {
    fn of(value: &serde_json::Value) -> u64 {
        match value {
            serde_json::Value::String(text) => text.len() as u64,
            serde_json::Value::Array(list) => list.iter().map(of).fold(8, u64::saturating_add),
            serde_json::Value::Object(map) => map
                .iter()
                .map(|(key, value)| of(value) + key.len() as u64)
                .sum(),
            _ => 8,
        }
    }
    variables.values().map(of).sum()
}

/// What a template raises is said in its own words.
const RAISED: &str = "the template refuses the conversation: ";

fn raise_exception(
    message: Value,
    rest: Rest<Value>,
) -> std::result::Result<Value, minijinja::Error> {
    let _ = rest;
    Err(minijinja::Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

/// The engine's message with the line, without its excerpt of the source.
fn said(error: &minijinja::Error) -> String {
    let detail: String = error
        .detail()
        .unwrap_or_default()
        .chars()
        .take(LONGEST_MESSAGE)
        .collect();
    if detail.starts_with(RAISED) {
        return detail;
    }
    let what = match detail.as_str() {
        "" => error.kind().to_string(),
        detail => format!("{}: {detail}", error.kind()),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}
