//! Methods of Python's strings, dictionaries and lists, where the engine's own set lacks one or
//! answers otherwise.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// What is called where the engine knows no method.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            from_args::<()>(args).map(|()| Some(value.clone()))?
        }
        _ => None,
    };
    match found {
        Some(answer) => Ok(answer),
        None => unknown_method_callback(state, value, method, args),
    }
}

/// What Python calls white space: four separators of ASCII more than Unicode.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(super) fn trimmed<'t>(
    text: &'t str,
    chars: Option<&str>,
    (left, right): (bool, bool),
) -> &'t str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left {
        text.trim_start_matches(goes)
    } else {
        text
    };
    if right {
        text.trim_end_matches(goes)
    } else {
        text
    }
}

/// Room is paid for before it is taken.
pub(super) fn pay(state: &State, n_bytes: usize) -> Result<(), Error> {
    state.consume_fuel(n_bytes as u64 / 64)
}

fn of_text(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let answer = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(trimmed(
                text,
                chars,
                (method != "rstrip", method != "lstrip"),
            ))
        }
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
            cut_up(text, method, args)?
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method == "index" {
                text.find(what)
            } else {
                text.rfind(what)
            };
            let at =
                at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Value::from(text.get(..at).map_or(0, |before| before.chars().count()))
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            filled(state, text, width, fill.unwrap_or(" "), method)?
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let zeros = zeros(state, text, width)?;
            Value::from(format!("{sign}{zeros}{digits}"))
        }
        "swapcase" => {
            let () = from_args(args)?;
            text.chars().map(swapped).collect::<String>().into()
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            joined(state, text, items)?
        }
        "format" => {
            pay_for_format(state, text, args)?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(answer))
}

/// Methods that cut a text.
fn cut_up(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
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

/// The engine formats without asking what it comes to: each field may take its width, and all that
/// is given.
fn pay_for_format(state: &State, text: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    let width = numbers
        .map(|digits| digits.parse().unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add);
    let given = args
        .iter()
        .map(|arg| arg.as_str().map_or(64, str::len))
        .fold(0, usize::saturating_add);
    pay(
        state,
        text.matches('{')
            .count()
            .saturating_mul(given)
            .saturating_add(width),
    )
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
    let separator = separator.filter(|separator| !separator.is_none());
    let text = |separator: Value| match separator.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::new(
            ErrorKind::InvalidOperation,
            "split: the separator must be a string or none",
        )),
    };
    Ok((
        separator.map(text).transpose()?,
        most.and_then(|most| usize::try_from(most).ok()),
    ))
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

fn missing(state: &State, text: &str, width: i64, fill: &str) -> Result<usize, Error> {
    let n_missing = usize::try_from(width)
        .unwrap_or(0)
        .saturating_sub(text.chars().count());
    pay(state, n_missing.saturating_mul(fill.len()))?;
    Ok(n_missing)
}

pub(super) fn filled(
    state: &State,
    text: &str,
    width: i64,
    fill: &str,
    method: &str,
) -> Result<Value, Error> {
    if fill.chars().count() != 1 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "the fill character must be exactly one character long",
        ));
    }
    let n_missing = missing(state, text, width, fill)?;
    let left = match method {
        "ljust" => 0,
        "rjust" => n_missing,
        // An odd one goes left in an even text, and right in an odd one.
        _ => n_missing / 2 + (n_missing & usize::try_from(width).unwrap_or(0) & 1),
    };
    Ok(Value::from(
        [&fill.repeat(left), text, &fill.repeat(n_missing - left)].concat(),
    ))
}

fn zeros(state: &State, text: &str, width: i64) -> Result<String, Error> {
    Ok("0".repeat(missing(state, text, width, "0")?))
}

fn swapped(c: char) -> String {
    match c {
        c if c.is_uppercase() => c.to_lowercase().collect(),
        c => c.to_uppercase().collect(),
    }
}

/// Letters after anything that is no letter are capitals.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match after_letter {
            true => out.extend(c.to_lowercase()),
            // One that becomes several has a capital first: ß is Ss.
            false => out.extend(
                c.to_uppercase()
                    .enumerate()
                    .flat_map(|(idx, upper)| match idx {
                        0 => vec![upper],
                        _ if c == 'ß' => upper.to_lowercase().collect(),
                        _ => vec![upper],
                    }),
            ),
        }
        after_letter = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn joined(state: &State, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (idx, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        let Some(text) = item.as_str() else {
            let message = format!(
                "sequence item {idx}: expected a string, found a value of kind {}",
                item.kind()
            );
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        };
        let separator = if idx > 0 { separator } else { "" };
        pay(state, separator.len() + text.len() + 64)?;
        out.push_str(separator);
        out.push_str(text);
    }
    Ok(Value::from(out))
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            for (idx, item) in value.try_iter()?.checked().enumerate() {
                if item? == *what {
                    return Ok(Some(Value::from(idx)));
                }
            }
            Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("{what} is not in the list"),
            ))
        }
        "copy" => from_args::<()>(args).map(|()| Some(value.clone())),
        _ => Ok(None),
    }
}
