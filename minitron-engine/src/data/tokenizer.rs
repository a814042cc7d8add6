//! The model's own tokenizer.json.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::chat::{ChatTemplate, Moment};
use minitron_core::checkpoint::Config;
use minitron_core::digest;
use minitron_core::error::{Error, Present, Result};
use minitron_core::files::read_text;
use minitron_core::windows::Tokenize;

/// Text to token ids and back, with the ids that windows need.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Option<tokenizers::Tokenizer>,
    /// The model's folder.
    pub(super) dir: PathBuf,
    /// Read where the first conversation is.
    pub(super) template: OnceLock<ChatTemplate>,
    pub(super) now: Option<Moment>,
    /// Of tokenizer.json.
    file_digest: String,
    vocab: usize,
    eos: Option<u32>,
    ends: Vec<u32>,
    /// What a folder without tokenizer.json holds instead.
    instead: String,
    prefix: Option<u32>,
    /// `[CLS]` and `[SEP]` of encoders.
    pub special_tokens: Option<(u32, u32)>,
    /// `[MASK]` of encoders.
    pub mask: Option<u32>,
}

/// Where configs name the tokens that end a text: one id, or a list.
const ENDS: &str = "eos_token_id";

/// What lies beside tokenizer.json and names special tokens; each may be absent.
struct Beside {
    tokenizer: Option<Config>,
    special: Option<Config>,
    generation: Option<Config>,
}

impl Beside {
    fn load(dir: &Path) -> Result<Self> {
        Ok(Beside {
            tokenizer: Config::load_optional(&dir.join("tokenizer_config.json"))?,
            special: Config::load_optional(&dir.join("special_tokens_map.json"))?,
            generation: Config::load_optional(&dir.join("generation_config.json"))?,
        })
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder; `causal` models get an end-of-sequence token after
    /// each document, others special tokens around each window.
    ///
    /// A folder without tokenizer.json serves token files only.
    ///
    /// # Errors
    /// `Checkpoint` when the file is malformed, or its vocabulary exceeds the model's.
    pub fn load(dir: &Path, config: &Config, vocab: usize, causal: bool) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let mut tokenizer = Tokenizer {
            inner: None,
            dir: dir.to_path_buf(),
            template: OnceLock::new(),
            now: None,
            file_digest: String::new(),
            vocab,
            eos: None,
            ends: Vec::new(),
            instead: String::new(),
            prefix: None,
            special_tokens: None,
            mask: None,
        };
        if path.is_file() {
            tokenizer.inner = Some(read_inner(&path, vocab)?);
            tokenizer.file_digest = digest::of_file(&path)?;
        } else {
            tokenizer.instead = instead(dir);
        }
        if causal {
            let beside = Beside::load(dir)?;
            tokenizer.eos = tokenizer.end_of_sequence(&beside, config);
            tokenizer.ends = tokenizer.all_ends(&beside, config);
            tokenizer.prefix = tokenizer
                .beginning_of_sequence(&beside, config)
                .or(tokenizer.eos);
        } else {
            let first = tokenizer.first_known(&["[CLS]", "<s>"]);
            let last = tokenizer.first_known(&["[SEP]", "</s>"]);
            tokenizer.special_tokens = first.zip(last);
            tokenizer.mask = tokenizer.first_known(&["[MASK]", "<mask>"]);
            let special_tokens = tokenizer
                .special_tokens
                .into_iter()
                .flat_map(|(first, last)| [first, last]);
            tokenizer.check(&special_tokens.chain(tokenizer.mask).collect::<Vec<_>>())?;
        }
        Ok(tokenizer)
    }

    /// The id of the first of these tokens that there is.
    fn first_known(&self, tokens: &[&str]) -> Option<u32> {
        let inner = self.inner.as_ref()?;
        tokens.iter().find_map(|token| inner.token_to_id(token))
    }

    fn end_of_sequence(&self, beside: &Beside, config: &Config) -> Option<u32> {
        let configs = [Some(config), beside.generation.as_ref()];
        configs
            .into_iter()
            .flatten()
            .find_map(|config| self.token_id(config, ENDS))
            .or_else(|| self.named_token(beside, "eos_token"))
    }

    /// All ids of generation_config.json, as `transformers` stops; where it names none, those of
    /// config.json, else the end-of-sequence token.
    fn all_ends(&self, beside: &Beside, config: &Config) -> Vec<u32> {
        for config in [beside.generation.as_ref(), Some(config)] {
            let mut ends = config.map_or_else(Vec::new, |config| config.token_ids(ENDS));
            ends.retain(|&id| (id as usize) < self.vocab);
            if !ends.is_empty() {
                return ends;
            }
        }
        self.eos.into_iter().collect()
    }

    fn beginning_of_sequence(&self, beside: &Beside, config: &Config) -> Option<u32> {
        // What the tokenizer's own files do not name, it does not have.
        match beside.tokenizer.is_some() {
            true => self.named_token(beside, "bos_token"),
            false => self.token_id(config, "bos_token_id"),
        }
    }

    fn token_id(&self, config: &Config, key: &str) -> Option<u32> {
        config
            .token_ids(key)
            .into_iter()
            .find(|&id| (id as usize) < self.vocab)
    }

    fn named_token(&self, beside: &Beside, key: &str) -> Option<u32> {
        [&beside.tokenizer, &beside.special]
            .into_iter()
            .flatten()
            .find_map(|config| self.named_in(config, key))
    }

    /// The token that a config names, as a text or an object with its `content`.
    fn named_in(&self, config: &Config, key: &str) -> Option<u32> {
        let content = match config.get(key)? {
            serde_json::Value::Object(token) => token.get("content")?.as_str()?,
            token => token.as_str()?,
        };
        let id = self.inner.as_ref()?.token_to_id(content)?;
        ((id as usize) < self.vocab).then_some(id)
    }

    /// Tokens at which a generation ends.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The end-of-sequence token, where the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    pub(super) fn inner(&self) -> Result<&tokenizers::Tokenizer> {
        self.inner.as_ref().ok_or_else(|| {
            let instead = &self.instead;
            Error::Data(format!(
                "the model folder has no tokenizer.json; {instead}, or give token files (.npy, \
                 .bin)"
            ))
        })
    }

    /// What was read, with its file's digest, for comparing tokenizers.
    pub(super) fn read(&self) -> Option<(&tokenizers::Tokenizer, &str)> {
        self.inner
            .as_ref()
            .map(|inner| (inner, self.file_digest.as_str()))
    }

    /// Of all that decides which tokens a document becomes.
    pub(super) fn digest(&self) -> String {
        digest::of_text(&format!(
            "{} {:?} {:?} {}",
            self.file_digest, self.eos, self.special_tokens, self.vocab
        ))
    }
}

impl Tokenize for Tokenizer {
    /// As in `transformers` 5, tokenizer.json alone decides which tokens stand around a text:
    /// `add_bos_token` of tokenizer_config.json says nothing beside it.
    fn encode_whole(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let inner = self.inner()?;
        let prefix = self.prefix.and_then(|id| inner.id_to_token(id));
        let (mut has_own, mut plain) = (Vec::with_capacity(texts.len()), Vec::new());
        for &text in texts {
            let begins = prefix
                .as_ref()
                .is_some_and(|prefix| text.starts_with(prefix.as_str()));
            has_own.push(begins);
            if !begins {
                plain.push(text);
            }
        }
        let encodings = guarded(|| inner.encode_batch_fast(plain, true));
        let mut encodings = encodings.map_err(refused)?.into_iter();
        let mut all = Vec::with_capacity(texts.len());
        for (text, has_own) in texts.iter().zip(has_own) {
            if has_own {
                all.push(self.encode(text)?);
                continue;
            }
            let encoding = encodings.next().present("an encoding of each text")?;
            let ids = encoding.get_ids().to_vec();
            self.check(&ids)?;
            all.push(ids);
        }
        Ok(all)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let inner = self.inner()?;
        let encoding = guarded(|| inner.encode_fast(text, false)).map_err(refused)?;
        let ids = encoding.get_ids().to_vec();
        self.check(&ids)?;
        Ok(ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let inner = self.inner()?;
        guarded(|| inner.decode(ids, true))
            .map_err(|e| Error::Data(format!("the tokenizer cannot decode: {e}")))
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(()),
            Some(id) => Err(Error::Data(format!(
                "token {id} lies outside the model's vocabulary of {}; the tokenizer or token file \
                 belongs to another model",
                self.vocab
            ))),
        }
    }

    fn prefix(&self) -> Option<u32> {
        self.prefix
    }

    fn special_tokens(&self) -> Option<(u32, u32)> {
        self.special_tokens
    }

    fn mask(&self) -> Option<u32> {
        self.mask
    }
}

/// Files of tokenizers in older formats, of which `transformers` makes a tokenizer.json; the surest
/// first.
const OLDER: [&[&str]; 8] = [
    &["tokenizer.model"],
    &["spiece.model"],
    &["sentencepiece.bpe.model"],
    &["vocab.json", "merges.txt"],
    &["tekken.json"],
    &["qwen.tiktoken"],
    &["vocab.txt"],
    &["vocab.json"],
];

/// What to do about a folder without tokenizer.json: convert what is there, or add what is not.
fn instead(dir: &Path) -> String {
    let found = OLDER
        .iter()
        .find(|names| names.iter().all(|name| dir.join(name).is_file()));
    let Some(names) = found else {
        return "add it".to_owned();
    };
    let is_sentencepiece = names.iter().any(|name| name.ends_with(".model"));
    let with = if is_sentencepiece {
        " (with sentencepiece installed)"
    } else {
        ""
    };
    let (names, dir) = (names.join(" and "), dir.display());
    format!(
        "{names} lies there, of which this makes one{with}: python -c \"from transformers import \
         AutoTokenizer; AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')\""
    )
}

/// The `tokenizers` crate answers some damaged tables with a panic, on opening or on a text, which
/// must not end the process.
pub(super) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // It is only read, so nothing is left half changed.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("it contradicts itself".into()))
}

pub(super) fn refused(error: tokenizers::Error) -> Error {
    Error::Data(format!("the tokenizer refuses the text: {error}"))
}

/// What tokenizer.json holds; windows are cut and padded elsewhere.
fn read_inner(path: &Path, vocab: usize) -> Result<tokenizers::Tokenizer> {
    let text = read_text(path).map_err(|e| match e.raw_os_error() {
        Some(_) => Error::io(path, e),
        None => unreadable(path, &e),
    })?;
    let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(text.as_bytes()))
        .map_err(|e| unreadable(path, &e))?;
    // Sentence encoders ship with both set.
    inner
        .with_truncation(None)
        .map_err(|e| Error::checkpoint(path, e.to_string()))?;
    inner.with_padding(None);
    check_vocabulary(&inner, vocab, path)?;
    Ok(inner)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::checkpoint(path, format!("not a tokenizer that can be read: {error}"))
}

/// Added tokens may lie beyond (they are refused when they occur); the tokenizer's own vocabulary
/// may not.
fn check_vocabulary(inner: &tokenizers::Tokenizer, vocab: usize, path: &Path) -> Result<()> {
    let largest = inner.get_vocab(false).into_iter().max_by_key(|(_, id)| *id);
    match largest {
        Some((token, id)) if id as usize >= vocab => Err(Error::checkpoint(
            path,
            format!(
                "token `{token}` has id {id}, the model's vocabulary ends at {}; the tokenizer \
                 belongs to another model",
                vocab.saturating_sub(1)
            ),
        )),
        _ => Ok(()),
    }
}
