//! From texts to what is scored of them, as the language-model evaluation harness does it
//! (`lm-eval`, `_encode_pair`).

use std::collections::HashMap;

use minitron_core::contract::Subject;
use minitron_core::error::{Error, Present, Result};
use minitron_core::evaluate::Continuation;
use minitron_core::windows::Tokenize;

/// A text, and what is scored after it: nothing is put between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TextPair {
    pub context: String,
    pub continuation: String,
}

impl TextPair {
    pub fn new(context: impl Into<String>, continuation: impl Into<String>) -> Self {
        TextPair {
            context: context.into(),
            continuation: continuation.into(),
        }
    }

    /// White space at the end of the context counts as the beginning of what follows.
    fn given(&self) -> &str {
        self.context.trim_end_matches(is_space)
    }
}

/// What Python takes for white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A tokenizer, of a model that texts are likely for.
pub(super) fn tokenizer<'a>(subject: &Subject<'a>, tag: &str) -> Result<&'a dyn Tokenize> {
    if !subject.model.is_causal() {
        return Err(Error::Data(format!(
            "{tag} needs a causal language model, this one is an encoder"
        )));
    }
    subject
        .tokenizer
        .ok_or_else(|| Error::Data(format!("{tag} needs the model's tokenizer")))
}

/// Tokens of pairs. Both texts are tokenised as one, with the special tokens that the tokenizer
/// puts around a text; the context's tokens are those of the context alone, and the continuation's
/// are the whole's after as many. Without a context the continuation follows the prefix token, or
/// its own first token where that is the same.
///
/// # Errors
/// Within, `Data` naming the pair of which nothing is left to score, or more than the model has
/// positions for.
pub(super) fn continuations(
    subject: &Subject,
    tokenizer: &dyn Tokenize,
    pairs: &[(String, TextPair)],
) -> Result<Vec<Result<Continuation>>> {
    let max_positions = subject.model.spec.options.max_positions;
    let mut contexts: HashMap<&str, usize> = HashMap::new();
    let mut given: Vec<&str> = Vec::new();
    for (_, pair) in pairs {
        let context = pair.given();
        contexts.entry(context).or_insert_with(|| {
            given.push(context);
            given.len() - 1
        });
    }
    let wholes: Vec<String> = pairs
        .iter()
        .map(|(_, pair)| format!("{}{}", pair.context, pair.continuation))
        .collect();
    let wholes = tokenizer.encode_whole(&wholes.iter().map(String::as_str).collect::<Vec<_>>())?;
    let given = tokenizer.encode_whole(&given)?;
    let mut found = Vec::with_capacity(pairs.len());
    for ((place, pair), whole) in pairs.iter().zip(wholes) {
        let context = contexts
            .get(pair.given())
            .and_then(|&idx| given.get(idx))
            .cloned()
            .present("a context that was encoded")?;
        let continuation = match pair.given() {
            "" => after_prefix(tokenizer, &format!("{}{}", pair.context, pair.continuation))?,
            // Absent where both have fewer tokens than the context alone, which is refused below.
            _ => Continuation {
                tokens: whole.get(context.len()..).unwrap_or_default().to_vec(),
                context,
            },
        };
        found.push(checked(continuation, place, pair, max_positions));
    }
    Ok(found)
}

fn checked(
    continuation: Continuation,
    place: &str,
    pair: &TextPair,
    max_positions: usize,
) -> Result<Continuation> {
    let n_tokens = continuation.tokens.len();
    if continuation.context.is_empty() || n_tokens == 0 {
        return Err(Error::Data(format!(
            "{place}: expected at least one token before `{0}` and one of its own; the tokenizer \
             makes none of them",
            pair.continuation
        )));
    }
    if n_tokens > max_positions {
        let message = format!(
            "{place}: expected at most {max_positions} tokens, which the model has positions for"
        );
        return Err(Error::Data(format!("{message}, got {n_tokens} to score")));
    }
    Ok(continuation)
}

fn after_prefix(tokenizer: &dyn Tokenize, text: &str) -> Result<Continuation> {
    let (mut tokens, prefix) = (tokenizer.encode(text)?, prefix(tokenizer)?);
    if tokens.first() == Some(&prefix) {
        tokens.remove(0);
    }
    Ok(Continuation {
        context: vec![prefix],
        tokens,
    })
}

/// What the first token of a text is scored after.
pub(super) fn prefix(tokenizer: &dyn Tokenize) -> Result<u32> {
    tokenizer.prefix().ok_or_else(|| {
        let what = "the tokenizer has neither a beginning-of-sequence nor an end-of-sequence token";
        Error::Data(format!(
            "{what}, so nothing stands before a text without a context; name one in its config"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_pythons() {
        let pair = TextPair::new("a b \n\u{1c}\u{85}\u{a0}", " c");
        assert_eq!(pair.given(), "a b");
        assert!(!is_space('\u{200b}') && !is_space('\u{1b}'));
    }
}
