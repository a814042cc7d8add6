//! `{% generation %}` blocks, by which a template says what the assistant said.
//!
//! Jinja2 gets them from an extension that makes a call block of them. So does this: the tags are
//! rewritten to those of a call block, which treat white space and scopes alike, and the function
//! that is called puts the block's text between two characters that occur nowhere in the
//! conversation.

use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};

/// Called around each block.
pub(super) const FUNCTION: &str = "__generation__";

/// The variable that holds the two characters, where they are asked for.
pub(super) const CHARACTERS: &str = "__marks__";

/// A character before what is marked and one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextMarks {
    open: char,
    close: char,
}

impl TextMarks {
    /// Two that none of the texts holds: Unicode keeps these for such use and promises that no text
    /// is written in them.
    pub(super) fn absent_from(texts: &[&str]) -> Option<Self> {
        let mut free =
            ('\u{fdd0}'..='\u{fdef}').filter(|&c| !texts.iter().any(|text| text.contains(c)));
        Some(TextMarks {
            open: free.next()?,
            close: free.next()?,
        })
    }

    pub(super) fn characters(self) -> String {
        [self.open, self.close].iter().collect()
    }

    /// The text without the marks, and where they were, in bytes of it. `None` where they are not
    /// in pairs.
    pub(super) fn cut(self, marked: &str) -> Option<(String, Vec<Range<usize>>)> {
        let mut text = String::with_capacity(marked.len());
        let (mut ranges, mut opened) = (Vec::new(), Vec::new());
        for c in marked.chars() {
            match c {
                c if c == self.open => opened.push(text.len()),
                c if c == self.close => {
                    let start = opened.pop()?;
                    // A block within a block is part of it.
                    if opened.is_empty() {
                        ranges.push(start..text.len());
                    }
                }
                c => text.push(c),
            }
        }
        opened.is_empty().then_some((text, ranges))
    }
}

/// What a generation block calls: its text, between marks where they are asked for.
pub(super) fn generation(state: &mut State, named: Kwargs) -> Result<Value, Error> {
    let caller: Value = named.get("caller")?;
    let text = caller.call(state, &[])?;
    let Some(marks) = state
        .lookup(CHARACTERS)
        .filter(|marks| !marks.is_undefined())
    else {
        return Ok(text);
    };
    let mut marks = marks.as_str().unwrap_or_default().chars();
    match (marks.next(), marks.next()) {
        (Some(open), Some(close)) => Ok(Value::from(format!("{open}{text}{close}"))),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            "a generation block without marks",
        )),
    }
}
