//! Whether two tokenizers are one: the same tokens under the same ids, made by the same rules.

use std::collections::BTreeMap;

use serde_json::Value;

use super::documents::{DataSources, DocumentPosition};
use super::spec::{DataSpec, Reading};
use super::tokenizer::Tokenizer;
use minitron_core::contract::Document;
use minitron_core::error::Result;
use minitron_core::registry::Registry;

/// What of two tokenizers differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerDifference {
    /// The first id that stands for two tokens, and how many such there are.
    pub other_token: Option<(OtherToken, usize)>,
    /// The first token that the second tokenizer lacks, with its id, and how many such there are.
    pub unknown: Option<((u32, String), usize)>,
    /// Parts of tokenizer.json by which text becomes these tokens.
    pub rules: Vec<&'static str>,
}

/// An id that stands for two tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherToken {
    /// The id.
    pub id: u32,
    /// What the first tokenizer means by it.
    pub one: String,
    /// What the second means.
    pub other: String,
}

impl Tokenizer {
    /// What differs from another tokenizer, in ids below `n_ids`; none where both are one file, or
    /// one of them is absent.
    pub fn difference(&self, other: &Tokenizer, n_ids: usize) -> Option<TokenizerDifference> {
        let ((ours, our_digest), (theirs, their_digest)) = (self.read()?, other.read()?);
        if our_digest == their_digest {
            return None;
        }
        let (our_tokens, their_tokens) = (by_id(ours), by_id(theirs));
        let mut difference = TokenizerDifference {
            rules: differing_rules(ours, theirs),
            ..Default::default()
        };
        for (&id, one) in our_tokens.iter().filter(|(id, _)| (**id as usize) < n_ids) {
            match their_tokens.get(&id) {
                Some(other) if other == one => {}
                Some(other) => {
                    let (_, n) = difference.other_token.get_or_insert_with(|| {
                        let (one, other) = (one.clone(), other.clone());
                        (OtherToken { id, one, other }, 0)
                    });
                    *n += 1;
                }
                None => {
                    let (_, n) = difference
                        .unknown
                        .get_or_insert_with(|| ((id, one.clone()), 0));
                    *n += 1;
                }
            }
        }
        (difference != TokenizerDifference::default()).then_some(difference)
    }

    /// The last token with an id below a limit.
    pub fn last_token(&self, below: usize) -> Option<(u32, String)> {
        let (inner, _) = self.read()?;
        by_id(inner)
            .into_iter()
            .rfind(|(id, _)| (*id as usize) < below)
    }
}

/// Added tokens included.
fn by_id(tokenizer: &tokenizers::Tokenizer) -> BTreeMap<u32, String> {
    tokenizer
        .get_vocab(true)
        .into_iter()
        .map(|(token, id)| (id, token))
        .collect()
}

/// The rules that decide which of its tokens a text becomes; what stands around a text, and how ids
/// become text, do not.
fn differing_rules(
    one: &tokenizers::Tokenizer,
    other: &tokenizers::Tokenizer,
) -> Vec<&'static str> {
    let [one, other] =
        [one, other].map(|tokenizer| serde_json::to_value(tokenizer).unwrap_or_default());
    let mut rules = Vec::new();
    for part in ["normalizer", "pre_tokenizer"] {
        if one[part] != other[part] {
            rules.push(part);
        }
    }
    let (one, other) = (model_without_ids(&one), model_without_ids(&other));
    if one["type"] != other["type"] {
        rules.push("model.type");
    } else if one["merges"] != other["merges"] {
        rules.push("model.merges");
    } else if one != other {
        rules.push("model");
    }
    rules
}

/// A map of tokens to ids is compared by itself; a list of them has what Unigram chooses by.
fn model_without_ids(tokenizer: &Value) -> Value {
    let mut model = tokenizer["model"].clone();
    if let Some(object) = model.as_object_mut()
        && object.get("vocab").is_some_and(Value::is_object)
    {
        object.shift_remove("vocab");
    }
    model
}

/// Whether some of the data are text, rather than token ids. Of each, the first document decides.
///
/// # Errors
/// `Recipe` for an ending that no corpus reads, `Data` for a file that is not there.
pub fn are_texts(specs: &[DataSpec], reading: &Reading, registry: &Registry) -> Result<bool> {
    for spec in specs {
        let sources = DataSources::new(std::slice::from_ref(spec), reading, registry)?;
        let first = sources.read(DocumentPosition::default()).next();
        // What cannot be read is said by whoever reads it all.
        if !matches!(first, Some(Ok((_, document))) if is_tokens(&document)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_tokens(document: &Document) -> bool {
    match document {
        Document::Tokens(_) => true,
        Document::Part(part) => is_tokens(part),
        Document::Text(_) | Document::Example(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use minitron_core::checkpoint::Config;

    fn bpe(change: impl Fn(&mut Value)) -> Tokenizer {
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{ "id": 4, "content": "<end>", "single_word": false, "lstrip": false,
                "rstrip": false,
                               "normalized": false, "special": true }],
            "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null,
                       "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                           "ignore_merges": false,
                       "vocab": { "a": 0, "b": 1, "ab": 2, "ba": 3 }, "merges": [["a", "b"], ["b",
                           "a"]] }
        });
        change(&mut file);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        let config = Config::from_value(Path::new("config.json"), json!({})).unwrap();
        Tokenizer::load(dir.path(), &config, 8, true).unwrap()
    }

    #[test]
    fn tokenizers_are_one_by_their_tokens_and_rules() {
        let plain = bpe(|_| {});
        let difference = |change: &dyn Fn(&mut Value)| plain.difference(&bpe(change), 8);
        assert_eq!(difference(&|_| {}), None);
        assert_eq!(
            difference(&|file| file["decoder"] = json!({ "type": "Fuse" })),
            None,
            "no token changes"
        );

        let swapped = difference(&|file| {
            file["model"]["vocab"] = json!({ "a": 0, "b": 1, "ab": 3, "ba": 2 });
        });
        let found = OtherToken {
            id: 2,
            one: "ab".into(),
            other: "ba".into(),
        };
        assert_eq!(swapped.unwrap().other_token, Some((found, 2)));
        let renamed =
            difference(&|file| file["added_tokens"][0]["content"] = "<stop>".into()).unwrap();
        let found = OtherToken {
            id: 4,
            one: "<end>".into(),
            other: "<stop>".into(),
        };
        assert_eq!(
            (renamed.other_token, renamed.rules.len()),
            (Some((found, 1)), 0)
        );

        let fewer = difference(&|file| file["added_tokens"] = json!([])).unwrap();
        assert_eq!(
            (fewer.other_token, fewer.unknown),
            (None, Some(((4, "<end>".to_owned()), 1)))
        );
        let more = bpe(|file| file["added_tokens"] = json!([]));
        assert_eq!(
            more.difference(&plain, 8),
            None,
            "what the second knows besides"
        );
        assert_eq!(
            plain.difference(&more, 4),
            None,
            "beyond the ids that are compared"
        );

        let rules = |change: &dyn Fn(&mut Value)| difference(change).unwrap().rules;
        assert_eq!(
            rules(&|file| file["model"]["merges"] = json!([["b", "a"], ["a", "b"]])),
            ["model.merges"]
        );
        assert_eq!(
            rules(&|file| file["pre_tokenizer"] = Value::Null),
            ["pre_tokenizer"]
        );
        assert_eq!(
            rules(&|file| file["normalizer"] = json!({ "type": "NFC" })),
            ["normalizer"]
        );
    }

    #[test]
    fn the_last_token_is_found_below_a_limit() {
        let plain = bpe(|_| {});
        assert_eq!(plain.last_token(8), Some((4, "<end>".into())));
        assert_eq!(plain.last_token(4), Some((3, "ba".into())));
        assert_eq!(plain.last_token(0), None);
    }
}
