//! A template compiled and rendered within limits.

use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde};
use minijinja::{Environment, ErrorKind, State, Value};
use serde_json::Map;

use super::clock::Moment;
use super::marks::{self, Marks};
use super::python;
use crate::error::{Error, Result};

/// Steps of a rendering; a further one for each byte that it is given. A step pays for 64 bytes of text or data made.
const STEPS: u64 = 1_000_000;

/// Characters of a template; the longest published ones have a fiftieth.
const LONGEST_TEMPLATE: usize = 1 << 20;

/// Calls within calls, and blocks within blocks.
const DEEPEST: usize = 200;

const NAME: &str = "chat template";

/// One template, ready to be rendered any number of times.
#[derive(Debug)]
pub(super) struct Engine {
    /// What errors name: a file, and the template's name where it holds several.
    origin: String,
    env: Environment<'static>,
    has_marks: bool,
}

impl Engine {
    pub(super) fn compile(origin: &str, source: &str, now: Moment) -> Result<Self> {
        let refused = |message: &str| Error::Data(format!("{origin}: {message}"));
        if source.len() > LONGEST_TEMPLATE {
            return Err(refused(&format!("a template of {} bytes; at most {LONGEST_TEMPLATE}", source.len())));
        }
        // As Python reads a text file, and Jinja2 a template.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, has_marks) = marks::as_calls(&source);
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::Internal(format!("the syntax of templates: {e}")))?);
        env.set_recursion_limit(DEEPEST);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        python::install(&mut env);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", move |format: &str| {
            now.format(format).ok_or_else(|| {
                minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: `{format}` is no format"))
            })
        });
        env.add_function(marks::FUNCTION, marks::generation);
        let added = catch_unwind(AssertUnwindSafe(|| env.add_template_owned(NAME, source).map_err(|e| said(&e))));
        match added {
            Ok(Ok(())) => Ok(Engine { origin: origin.to_owned(), env, has_marks }),
            Ok(Err(message)) => Err(refused(&format!("not a template that can be read: {message}"))),
            Err(_) => Err(refused("not a template that can be read: it contradicts itself")),
        }
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn has_marks(&self) -> bool {
        self.has_marks
    }

    /// The text; with marks, what they enclose stands between their characters.
    pub(super) fn render(&self, variables: &Map<String, serde_json::Value>, marks: Option<Marks>) -> Result<String> {
        let refused = |message: String| Error::Data(format!("{}: {message}", self.origin));
        let n_bytes = size_of(variables);
        let mut env = self.env.clone();
        env.set_fuel(Some(STEPS.saturating_add(n_bytes)));
        if let Some(marks) = marks {
            env.add_global(marks::CHARACTERS, Value::from(marks.characters()));
        }
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let template = env.get_template(NAME).map_err(|e| said(&e))?;
            template.render(Serde(variables)).map_err(|e| match e.kind() {
                ErrorKind::OutOfFuel => format!("the template loops or explodes: it was stopped after {STEPS} steps"),
                _ => said(&e),
            })
        }));
        match rendered {
            Ok(rendered) => rendered.map_err(refused),
            Err(_) => Err(refused("the template cannot be rendered: it contradicts itself".into())),
        }
    }
}

/// Bytes of all texts, about.
fn size_of(variables: &Map<String, serde_json::Value>) -> u64 {
    fn of(value: &serde_json::Value) -> u64 {
        match value {
            serde_json::Value::String(text) => text.len() as u64,
            serde_json::Value::Array(list) => list.iter().map(of).fold(8, u64::saturating_add),
            serde_json::Value::Object(map) => {
                map.iter().map(|(key, value)| of(value).saturating_add(key.len() as u64)).fold(8, u64::saturating_add)
            }
            _ => 8,
        }
    }
    variables.values().map(of).fold(0, u64::saturating_add)
}

/// What a template raises is said in its own words.
const RAISED: &str = "the template refuses the conversation: ";

fn raise_exception(message: Value, rest: Rest<Value>, named: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let _ = (rest, named);
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// The engine's message with the line, without its excerpt of the source.
fn said(error: &minijinja::Error) -> String {
    let detail = error.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(RAISED) {
        return format!("{RAISED}{message}");
    }
    let what = match detail {
        "" => error.kind().to_string(),
        detail => format!("{}: {detail}", error.kind()),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// For functions that are called from templates.
pub(super) fn call(state: &mut State, function: &Value) -> std::result::Result<Value, minijinja::Error> {
    function.call(state, &[])
}
