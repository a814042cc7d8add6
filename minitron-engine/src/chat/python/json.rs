//! `tojson` as `transformers` has it: Python's `json.dumps` with letters left as they are.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::CallArguments;
use super::methods::pay;
use super::printing::{float, too_deep};

const DEEPEST: usize = 200;

/// How `json.dumps` was asked.
struct Writer {
    ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sorted: bool,
    out: String,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    given: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let mut given = CallArguments::new(given, named);
    let ascii = given.flag("ensure_ascii")?;
    let indent = given.value("indent")?;
    let separators = given.value("separators")?;
    let sorted = given.flag("sort_keys")?;
    given.end()?;
    let indent = indent
        .map(|indent| indentation(state, indent))
        .transpose()?;
    let (between_items, after_key) = match separators {
        Some(pair) => (text_at(&pair, 0)?, text_at(&pair, 1)?),
        None => (
            if indent.is_some() { "," } else { ", " }.to_owned(),
            ": ".to_owned(),
        ),
    };
    let mut writer = Writer {
        ascii,
        indent,
        between_items,
        after_key,
        sorted,
        out: String::new(),
    };
    writer.value(state, value, 0)?;
    Ok(Value::from(writer.out))
}

/// A number of spaces, or what stands for one level.
fn indentation(state: &State, indent: Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    let n_spaces = usize::try_from(i64::try_from(indent)?.max(0)).unwrap_or(usize::MAX);
    pay(state, n_spaces)?;
    Ok(" ".repeat(n_spaces))
}

fn text_at(pair: &Value, idx: usize) -> Result<String, Error> {
    let text = pair.get_item_by_index(idx)?;
    text.as_str().map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "tojson: separators are two strings",
        )
    })
}

impl Writer {
    fn value(&mut self, state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(too_deep());
        }
        // What is written is paid for as it grows, not after.
        pay(state, value.as_str().map_or(0, str::len) + 64)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => {
                let _ = write!(self.out, "{value}");
            }
            ValueKind::Number => self.out.push_str(&number(f64::try_from(value.clone())?)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = Vec::new();
                for item in value.try_iter()?.checked() {
                    state.consume_fuel(1)?;
                    items.push(item?);
                }
                self.container(state, ('[', ']'), &items, depth, |writer, item| {
                    writer.value(state, item, depth.saturating_add(1))
                })?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    let value = value.get_item(&key)?;
                    let key = key_text(&key)?;
                    pay(state, key.len() + 64)?;
                    entries.push((key, value));
                }
                if self.sorted {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.container(
                    state,
                    ('{', '}'),
                    &entries,
                    depth,
                    |writer, (key, value)| {
                        writer.text(key);
                        let after_key = writer.after_key.clone();
                        writer.out.push_str(&after_key);
                        writer.value(state, value, depth.saturating_add(1))
                    },
                )?;
            }
            _ => return Err(no_json(value)),
        }
        Ok(())
    }

    fn container<T>(
        &mut self,
        state: &State,
        (open, close): (char, char),
        items: &[T],
        depth: usize,
        mut write_item: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (idx, item) in items.iter().enumerate() {
            if idx > 0 {
                let between = self.between_items.clone();
                self.out.push_str(&between);
            }
            self.new_line(state, depth.saturating_add(1))?;
            write_item(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(state, depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, state: &State, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            pay(state, indent.len().saturating_mul(depth))?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ascii && c >= '\u{7f}' => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

/// Python writes what JSON has no word for.
fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".to_owned(),
        x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        x => float(x),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number if key.is_integer() => Ok(key.to_string()),
        ValueKind::Number => Ok(number(f64::try_from(key.clone())?)),
        _ => Err(no_json(key)),
    }
}

fn no_json(value: &Value) -> Error {
    let message = format!("tojson: a value of kind {} has no JSON", value.kind());
    Error::new(ErrorKind::InvalidOperation, message)
}
