//! A template's source as the engine takes it: generation blocks become call blocks, what a
//! namespace is to keep is looked at, and strings are escaped as Python escapes them.

use std::borrow::Cow;

use super::marks;
use super::python::kept;
use minitron_core::error::{Error, Result};

/// Bytes between the braces of one tag; the longest published ones have a tenth. What nests inside
/// takes room on the stack.
const LONGEST_TAG: usize = 16 << 10;

/// A template for the engine.
pub(super) struct Prepared {
    pub(super) source: String,
    pub(super) has_marks: bool,
}

/// Rewrites the tags of a template, line by line where they were.
pub(super) fn prepare(source: &str) -> Result<Prepared> {
    // As Python reads a text file, and Jinja2 a template.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut has_marks) = (source.as_str(), false);
    while let Some((at, closes)) = next_tag(rest) {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let (tag, after) = tag.split_at(length_of(tag, closes));
        rest = after;
        if closes == "#}" {
            out.push_str(tag);
            continue;
        }
        if tag.len() > LONGEST_TAG {
            return Err(Error::Data(format!(
                "a tag of {} bytes; at most {LONGEST_TAG}",
                tag.len()
            )));
        }
        let tag = with_escapes_of_python(tag);
        match (closes, word_of(&tag)) {
            ("%}", "generation") => {
                out.push_str(&tag.replacen(
                    "generation",
                    &format!("call {}()", marks::FUNCTION),
                    1,
                ));
                has_marks = true;
            }
            ("%}", "endgeneration") => out.push_str(&tag.replacen("endgeneration", "endcall", 1)),
            ("%}", "raw") => {
                out.push_str(&tag);
                let (raw, after) = rest.split_at(end_of_raw(rest));
                out.push_str(raw);
                rest = after;
            }
            ("%}", "set") => out.push_str(&with_kept(&tag)),
            _ => out.push_str(&tag),
        }
    }
    out.push_str(rest);
    Ok(Prepared {
        source: out,
        has_marks,
    })
}

/// Where the next tag begins, and what ends it.
fn next_tag(text: &str) -> Option<(usize, &'static str)> {
    for (at, _) in text.match_indices('{') {
        match text.as_bytes().get(at + 1) {
            Some(b'%') => return Some((at, "%}")),
            Some(b'{') => return Some((at, "}}")),
            Some(b'#') => return Some((at, "#}")),
            _ => {}
        }
    }
    None
}

/// Bytes of a tag with its end, or all that is left. What looks like an end inside a string or
/// brackets is none.
fn length_of(tag: &str, closes: &str) -> usize {
    if closes == "#}" {
        return tag
            .get(2..)
            .and_then(|inside| inside.find(closes))
            .map_or(tag.len(), |at| at + 4);
    }
    let (mut quote, mut n_open) = (None, 0usize);
    let mut chars = tag.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, _)
                if n_open == 0 && tag.get(at..).is_some_and(|rest| rest.starts_with(closes)) =>
            {
                return at + closes.len();
            }
            (None, '(' | '[' | '{') => n_open += 1,
            (None, ')' | ']' | '}') => n_open = n_open.saturating_sub(1),
            _ => {}
        }
    }
    tag.len()
}

/// What stands between the marks of a tag and of white space control.
fn inside(tag: &str) -> &str {
    let inside = tag.get(2..tag.len().saturating_sub(2)).unwrap_or_default();
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    inside.strip_suffix(['-', '+']).unwrap_or(inside)
}

/// The word that a block is known by here; tags of one word have nothing beside it.
fn word_of(tag: &str) -> &str {
    match inside(tag).trim() {
        word @ ("generation" | "endgeneration" | "raw") => word,
        words
            if words.starts_with("set")
                && words
                    .get(3..)
                    .is_some_and(|rest| rest.starts_with(char::is_whitespace)) =>
        {
            "set"
        }
        _ => "",
    }
}

/// `set ns.name = value`, with a call around the value.
fn with_kept(tag: &str) -> Cow<'_, str> {
    let inside = inside(tag);
    let Some((target, value)) = inside.split_once('=') else {
        return tag.into();
    };
    let is_target = target
        .chars()
        .all(|c| c.is_alphanumeric() || c.is_whitespace() || "_.,()".contains(c));
    if !is_target || !target.contains('.') {
        return tag.into();
    }
    let (open, close) = tag.split_once(inside).unwrap_or_default();
    // In brackets of its own: a tuple may stand without any.
    format!("{open}{target}= {}(({value})){close}", kept::FUNCTION).into()
}

/// Bytes up to the tag that ends a raw block.
fn end_of_raw(text: &str) -> usize {
    for (at, opening) in text.match_indices("{%") {
        let tag = text.get(at + opening.len()..).unwrap_or_default();
        let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
        if tag.starts_with("endraw") {
            return at;
        }
    }
    text.len()
}

/// Python keeps the backslash before a letter that it does not know, and knows some that the engine
/// does not.
fn with_escapes_of_python(tag: &str) -> Cow<'_, str> {
    if !tag.contains('\\') {
        return tag.into();
    }
    let mut out = String::with_capacity(tag.len());
    let mut quote = None;
    let mut chars = tag.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => escape(&mut chars, &mut out),
            (Some(open), _) if c == open => {
                quote = None;
                out.push(c);
            }
            (None, '"' | '\'') => {
                quote = Some(c);
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out.into()
}

/// What follows a backslash.
fn escape(chars: &mut std::str::Chars, out: &mut String) {
    match chars.next() {
        // A line goes on.
        Some('\n') => {}
        Some('a') => out.push('\u{7}'),
        Some('v') => out.push('\u{b}'),
        Some('U') => {
            let digits: String = chars.clone().take(8).collect();
            let c = u32::from_str_radix(&digits, 16)
                .ok()
                .filter(|_| digits.len() == 8)
                .and_then(char::from_u32);
            match c {
                // The rest of an escape that was read; a quote or a backslash cannot be meant by
                // one.
                Some(c) => {
                    chars.nth(7);
                    out.push(c);
                }
                None => out.push_str("\\\\U"),
            }
        }
        Some(c @ ('\\' | '\'' | '"' | 'b' | 'f' | 'n' | 'r' | 't' | 'u' | 'x' | '0'..='7')) => {
            out.extend(['\\', c])
        }
        Some(c) => out.extend(['\\', '\\', c]),
        None => out.push('\\'),
    }
}
