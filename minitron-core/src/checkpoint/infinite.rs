//! Numbers that JSON has no word for, as Python writes them into `config.json`: bounds of a step
//! that is not bounded. They are kept as strings in brackets and written as they stood.

/// The words, and the strings that stand for them.
const WORDS: [(&str, &str); 3] = [
    ("-Infinity", "\"(-Infinity)\""),
    ("Infinity", "\"(Infinity)\""),
    ("NaN", "\"(NaN)\""),
];

/// The text with a string for each such word outside of strings.
pub(super) fn quoted(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|(word, _)| rest.starts_with(word));
        let (n_read, written) = match (first, word) {
            ('"', _) => {
                let string = string_at(rest);
                (string.len(), string)
            }
            (_, Some((word, string))) => (word.len(), *string),
            _ => (first.len_utf8(), rest.get(..first.len_utf8()).unwrap_or("")),
        };
        out.push_str(written);
        rest = rest.get(n_read..).unwrap_or("");
    }
    out
}

/// The string that a text begins with, up to its closing mark.
fn string_at(text: &str) -> &str {
    let mut is_escaped = false;
    for (at, found) in text.char_indices().skip(1) {
        match found {
            '"' if !is_escaped => return text.get(..=at).unwrap_or(text),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    text
}

/// The text with the words for those strings.
pub(super) fn bare(text: String) -> String {
    WORDS
        .iter()
        .fold(text, |text, (word, string)| text.replace(string, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_of_strings_are_quoted_and_come_back() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "Infinity": "NaN \" Infinity", "ü": NaN}"#;
        let quoted = quoted(text);
        let value: serde_json::Value = serde_json::from_str(&quoted).unwrap();
        assert_eq!(value["a"][1], "(Infinity)");
        assert_eq!(value["a"][2], "(-Infinity)");
        assert_eq!(value["Infinity"], "NaN \" Infinity");
        assert_eq!(bare(quoted), text);
        for broken in ["\"Infinity", "\"\\", "", "Infinit"] {
            assert_eq!(super::quoted(broken), broken);
        }
    }
}
