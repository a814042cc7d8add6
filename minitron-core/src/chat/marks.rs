//! `{% generation %}` blocks, by which a template says what the assistant said.
//!
//! Jinja2 gets them from an extension that makes a call block of them. So does this: the tags are rewritten to those of a
//! call block, which treat white space and scopes alike, and the function that is called puts the block's text between two
//! characters that occur nowhere in the conversation.

use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};

/// Called around each block.
pub(super) const FUNCTION: &str = "__generation__";

/// The variable that holds the two characters, where they are asked for.
pub(super) const CHARACTERS: &str = "__marks__";

/// A character before what is marked and one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    open: char,
    close: char,
}

impl Marks {
    /// Two that none of the texts holds: Unicode keeps these for such use and promises that no text is written in them.
    pub(super) fn absent_from(texts: &[&str]) -> Option<Self> {
        let is_free = |c: &char| !texts.iter().any(|text| text.contains(*c));
        let mut free = ('\u{fdd0}'..='\u{fdef}').filter(is_free);
        Some(Marks { open: free.next()?, close: free.next()? })
    }

    pub(super) fn characters(self) -> String {
        [self.open, self.close].iter().collect()
    }

    /// The text without the marks, and where they were, in bytes of it. `None` where they are not in pairs.
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
    let text = super::engine::call(state, &caller)?;
    let Some(marks) = state.lookup(CHARACTERS).filter(|marks| !marks.is_undefined()) else { return Ok(text) };
    let mut marks = marks.as_str().unwrap_or_default().chars();
    match (marks.next(), marks.next()) {
        (Some(open), Some(close)) => Ok(Value::from(format!("{open}{text}{close}"))),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "a generation block without marks")),
    }
}

/// The template with its generation blocks as call blocks, and whether it has any.
pub(super) fn as_calls(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut has_marks) = (source, false);
    while let Some((at, closes)) = next_tag(rest) {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = length_of(tag, closes);
        let (tag, after) = tag.split_at(length);
        rest = after;
        match (closes, word_of(tag)) {
            ("%}", "generation") => {
                out.push_str(&tag.replacen("generation", &format!("call {FUNCTION}()"), 1));
                has_marks = true;
            }
            ("%}", "endgeneration") => out.push_str(&tag.replacen("endgeneration", "endcall", 1)),
            ("%}", "raw") => {
                out.push_str(tag);
                let n_raw = end_of_raw(rest);
                let (raw, after) = rest.split_at(n_raw);
                out.push_str(raw);
                rest = after;
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    (out, has_marks)
}

/// Where the next tag begins, and what ends it.
fn next_tag(text: &str) -> Option<(usize, &'static str)> {
    let open = |(at, _): (usize, &str)| match text.as_bytes().get(at.saturating_add(1)) {
        Some(b'%') => Some((at, "%}")),
        Some(b'{') => Some((at, "}}")),
        Some(b'#') => Some((at, "#}")),
        _ => None,
    };
    text.match_indices('{').find_map(open)
}

/// Bytes of a tag with its end, or all that is left; what looks like an end inside a string is none.
fn length_of(tag: &str, closes: &str) -> usize {
    let mut quote = None;
    let mut chars = tag.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') if closes != "#}" => quote = Some(c),
            (None, _) if tag.get(at..).is_some_and(|rest| rest.starts_with(closes)) => {
                return at.saturating_add(closes.len());
            }
            _ => {}
        }
    }
    tag.len()
}

/// The only word of a block's tag, or its first one.
fn word_of(tag: &str) -> &str {
    let inside = tag.get(2..tag.len().saturating_sub(2)).unwrap_or_default();
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let inside = inside.strip_suffix(['-', '+']).unwrap_or(inside).trim();
    match inside {
        "generation" | "endgeneration" | "raw" => inside,
        _ => "",
    }
}

/// Bytes up to the tag that ends a raw block.
fn end_of_raw(text: &str) -> usize {
    let ends = |(at, _): (usize, &str)| {
        let tag = text.get(at..)?.strip_prefix("{%")?;
        let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
        tag.starts_with("endraw").then_some(at)
    };
    text.match_indices("{%").find_map(ends).unwrap_or(text.len())
}
