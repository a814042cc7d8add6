//! Methods of Python's strings that cut a text or take its ends away.

use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, Value};

/// What Python calls white space: four separators of ASCII more than Unicode.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Without these characters, or white space, at the ends that are asked for.
pub(super) fn trimmed<'t>(
    text: &'t str,
    chars: Option<&str>,
    (left, right): (bool, bool),
) -> &'t str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = match left {
        true => text.trim_start_matches(goes),
        false => text,
    };
    match right {
        true => text.trim_end_matches(goes),
        false => text,
    }
}

/// Methods that cut a text.
pub(super) fn cut_up(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            Ok(lines(text, keep_ends.unwrap_or(false))
                .into_iter()
                .map(Value::from)
                .collect())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, separator, method == "rpartition")
        }
        _ => {
            let (separator, most) = split_arguments(args)?;
            split(text, separator.as_deref(), most, method == "rsplit")
        }
    }
}

/// `(sep=None, maxsplit=-1)`, by position or by name.
fn split_arguments(args: &[Value]) -> Result<(Option<String>, Option<usize>), Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, minijinja::value::Kwargs) =
        from_args(args)?;
    let separator = match separator {
        None => named.get::<Option<Value>>("sep")?,
        given => given,
    };
    let most = match most {
        None => named.get::<Option<i64>>("maxsplit")?,
        given => given,
    };
    named.assert_all_used()?;
    let separator = match separator.filter(|separator| !separator.is_none()) {
        Some(given) => Some(separator_text(&given)?),
        None => None,
    };
    Ok((separator, most.and_then(|most| usize::try_from(most).ok())))
}

fn separator_text(separator: &Value) -> Result<String, Error> {
    separator.as_str().map(str::to_owned).ok_or_else(|| {
        let message = "split: the separator must be a string or none";
        Error::new(ErrorKind::InvalidOperation, message)
    })
}

fn split(
    text: &str,
    separator: Option<&str>,
    most: Option<usize>,
    from_right: bool,
) -> Result<Value, Error> {
    let n_parts = most.map(|most| most.saturating_add(1));
    let parts: Vec<&str> = match (separator, n_parts, from_right) {
        (Some(""), ..) => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        (Some(separator), None, _) => text.split(separator).collect(),
        (Some(separator), Some(n), false) => text.splitn(n, separator).collect(),
        (Some(separator), Some(n), true) => reversed(text.rsplitn(n, separator).collect()),
        (None, None, _) => text
            .split(is_space)
            .filter(|word| !word.is_empty())
            .collect(),
        (None, Some(n), false) => words(text, n),
        (None, Some(n), true) => words_from_right(text, n),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn reversed<T>(mut items: Vec<T>) -> Vec<T> {
    items.reverse();
    items
}

/// At most so many words; the last one is all that is left.
fn words(text: &str, n: usize) -> Vec<&str> {
    let mut rest = text.trim_start_matches(is_space);
    let mut words = Vec::new();
    while !rest.is_empty() {
        if words.len() + 1 == n {
            words.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        words.push(word);
        rest = after.trim_start_matches(is_space);
    }
    words
}

fn words_from_right(text: &str, n: usize) -> Vec<&str> {
    let mut rest = text.trim_end_matches(is_space);
    let mut words = Vec::new();
    while !rest.is_empty() {
        let space = rest.rfind(is_space).filter(|_| words.len() + 1 < n);
        let start = space
            .and_then(|at| rest.get(at..)?.chars().next().map(|c| at + c.len_utf8()))
            .unwrap_or(0);
        let (before, word) = rest.split_at(start);
        words.push(word);
        rest = before.trim_end_matches(is_space);
    }
    reversed(words)
}

/// `str.splitlines`, which knows more ends of lines than any text file has.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    const ENDS: [char; 10] = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
        '\u{2029}',
    ];
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(ENDS) else {
            lines.push(rest);
            break;
        };
        let (line, after) = rest.split_at(at);
        let n_end = if after.starts_with("\r\n") {
            2
        } else {
            after.chars().next().map_or(0, char::len_utf8)
        };
        let (whole, after) = rest.split_at(at + n_end);
        lines.push(if keep_ends { whole } else { line });
        rest = after;
    }
    lines
}

fn partition(text: &str, separator: &str, from_right: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let found = if from_right {
        text.rsplit_once(separator)
    } else {
        text.split_once(separator)
    };
    let parts = match (found, from_right) {
        (Some((before, after)), _) => [before, separator, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}
