//! The model's own tokenizer.json.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::token::Token;
use crate::chat::{ChatTemplate, Example, Moment, Rendered, token_mask};
use crate::checkpoint::Config;
use crate::contract::Document;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::read_text;

/// Text to token ids and back, with the ids that windows need.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Option<tokenizers::Tokenizer>,
    /// The model's folder.
    dir: PathBuf,
    /// Read where the first conversation is.
    template: OnceLock<ChatTemplate>,
    now: Option<Moment>,
    /// Of tokenizer.json.
    file_digest: String,
    vocab: usize,
    eos: Option<u32>,
    ends: Vec<u32>,
    /// What a folder without tokenizer.json holds instead.
    instead: String,
    prefix: Option<u32>,
    /// What stands before and after a text, where tokenizer_config.json decides it.
    around: Option<(Option<u32>, Option<u32>)>,
    /// `[CLS]` and `[SEP]` of encoders.
    pub brackets: Option<(u32, u32)>,
    /// `[MASK]` of encoders.
    pub mask: Option<u32>,
}

/// What has to be found out about a document's tokens, beside their ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// Which of them answer; no others count.
    pub answers: bool,
    /// Where turns end.
    pub turns: bool,
}

impl Wants {
    fn refuse_text(self) -> Result<()> {
        if !self.answers {
            return Ok(());
        }
        let message = "mask: answers: this document is plain text, in which nothing answers; \
                       give conversations, or leave the mask out";
        Err(Error::Data(message.into()))
    }
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
        let load = |name: &str| Config::load_optional(&dir.join(name));
        Ok(Beside {
            tokenizer: load("tokenizer_config.json")?,
            special: load("special_tokens_map.json")?,
            generation: load("generation_config.json")?,
        })
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder; `causal` models get an end-of-sequence token after each document,
    /// others brackets around each window.
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
            around: None,
            brackets: None,
            mask: None,
        };
        if path.is_file() {
            let text = read_text(&path).map_err(|e| match e.raw_os_error() {
                Some(_) => Error::io(&path, e),
                None => Error::checkpoint(&path, format!("not a tokenizer that can be read: {e}")),
            })?;
            let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(text.as_bytes()))
                .map_err(|e| Error::checkpoint(&path, format!("not a tokenizer that can be read: {e}")))?;
            // Sentence encoders ship with both set; windows are cut here.
            inner.with_truncation(None).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
            inner.with_padding(None);
            check_vocabulary(&inner, vocab, &path)?;
            tokenizer.inner = Some(inner);
            tokenizer.file_digest = digest::of_file(&path)?;
        } else {
            tokenizer.instead = instead(dir);
        }
        if causal {
            let beside = Beside::load(dir)?;
            tokenizer.eos = tokenizer.end_of_sequence(&beside, config);
            tokenizer.ends = tokenizer.all_ends(&beside, config);
            tokenizer.prefix = tokenizer.beginning_of_sequence(&beside, config).or(tokenizer.eos);
            tokenizer.around = tokenizer.asked_around(&beside);
        } else {
            let id = |token: &str| tokenizer.inner.as_ref().and_then(|inner| inner.token_to_id(token));
            tokenizer.brackets = id("[CLS]").or(id("<s>")).zip(id("[SEP]").or(id("</s>")));
            tokenizer.mask = id("[MASK]").or(id("<mask>"));
            let brackets = tokenizer.brackets.into_iter().flat_map(|(first, last)| [first, last]);
            tokenizer.check(&brackets.chain(tokenizer.mask).collect::<Vec<_>>())?;
        }
        Ok(tokenizer)
    }

    fn end_of_sequence(&self, beside: &Beside, config: &Config) -> Option<u32> {
        let from_ids = |config: &Config| self.token_id(config, ENDS);
        from_ids(config)
            .or_else(|| beside.generation.as_ref().and_then(from_ids))
            .or_else(|| self.named_token(beside, "eos_token"))
    }

    /// All ids of generation_config.json, as `transformers` stops; where it names none, those of config.json, else the
    /// end-of-sequence token.
    fn all_ends(&self, beside: &Beside, config: &Config) -> Vec<u32> {
        let within = |config: &Config| -> Vec<u32> {
            config.token_ids(ENDS).into_iter().filter(|&id| (id as usize) < self.vocab).collect()
        };
        let stated = beside.generation.as_ref().map(within).filter(|ids| !ids.is_empty());
        let ends = stated.unwrap_or_else(|| within(config));
        if ends.is_empty() { self.eos.into_iter().collect() } else { ends }
    }

    fn beginning_of_sequence(&self, beside: &Beside, config: &Config) -> Option<u32> {
        // What the tokenizer's own files do not name, it does not have.
        match beside.tokenizer.is_some() {
            true => self.named_token(beside, "bos_token"),
            false => self.token_id(config, "bos_token_id"),
        }
    }

    /// `add_bos_token` and `add_eos_token`: either overrules tokenizer.json, as in `transformers` 5.
    fn asked_around(&self, beside: &Beside) -> Option<(Option<u32>, Option<u32>)> {
        let config = beside.tokenizer.as_ref()?;
        let asked = |key: &str| config.get(key).and_then(serde_json::Value::as_bool);
        let (bos, eos) = (asked("add_bos_token"), asked("add_eos_token"));
        let token = |asked: Option<bool>, key| self.named_token(beside, key).filter(|_| asked == Some(true));
        (bos.is_some() || eos.is_some()).then(|| (token(bos, "bos_token"), token(eos, "eos_token")))
    }

    fn token_id(&self, config: &Config, key: &str) -> Option<u32> {
        config.token_ids(key).into_iter().find(|&id| (id as usize) < self.vocab)
    }

    fn named_token(&self, beside: &Beside, key: &str) -> Option<u32> {
        let named = |config: &Config| {
            let content = match config.get(key)? {
                serde_json::Value::Object(token) => token.get("content")?.as_str()?.to_owned(),
                token => token.as_str()?.to_owned(),
            };
            self.inner.as_ref()?.token_to_id(&content).filter(|&id| (id as usize) < self.vocab)
        };
        [&beside.tokenizer, &beside.special].into_iter().flatten().find_map(named)
    }

    /// Tokens at which a generation ends.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The end-of-sequence token, where the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What stands before a text that nothing precedes: the beginning-of-sequence token where the tokenizer has one, else
    /// the end-of-sequence token.
    pub fn prefix(&self) -> Option<u32> {
        self.prefix
    }

    /// Token ids of texts, made on all cores, with the special tokens that the tokenizer itself puts around a text: for
    /// many, one at its beginning, unless the text begins with it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_whole(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let inner = self.inner()?;
        let prefix = self.prefix.and_then(|id| inner.id_to_token(id));
        let has_own = |text: &str| prefix.as_ref().is_some_and(|prefix| text.starts_with(prefix.as_str()));
        let plain = texts.iter().copied().filter(|text| !has_own(text)).collect();
        let encodings = guarded(|| inner.encode_batch_fast(plain, self.around.is_none()));
        let mut encodings = encodings.map_err(refused)?.into_iter();
        let (before, after) = self.around.unwrap_or_default();
        let ids = |text: &&str| match has_own(text) {
            true => self.encode(text),
            false => {
                let of_text = encodings.next().map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
                let ids: Vec<u32> = before.into_iter().chain(of_text).chain(after).collect();
                self.check(&ids).map(|()| ids)
            }
        };
        texts.iter().map(ids).collect()
    }

    /// Token ids of a text, without special tokens.
    ///
    /// # Errors
    /// `Data` when the folder has no tokenizer or a token lies outside the model's vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let inner = self.inner()?;
        let encoding = guarded(|| inner.encode_fast(text, false)).map_err(refused)?;
        let ids = encoding.get_ids().to_vec();
        self.check(&ids)?;
        Ok(ids)
    }

    /// Token ids of a conversation's text, whose template brought the special tokens, and which of them the assistant said.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_conversation(&self, rendered: &Rendered) -> Result<(Vec<u32>, Vec<bool>)> {
        let inner = self.inner()?;
        let encoding = guarded(|| inner.encode_char_offsets(rendered.text.as_str(), false)).map_err(refused)?;
        let ids = encoding.get_ids().to_vec();
        self.check(&ids)?;
        Ok((ids, token_mask(encoding.get_offsets(), &rendered.answers_in_chars())))
    }

    fn inner(&self) -> Result<&tokenizers::Tokenizer> {
        self.inner.as_ref().ok_or_else(|| {
            let instead = &self.instead;
            Error::Data(format!("the model folder has no tokenizer.json; {instead}, or give token files (.npy, .bin)"))
        })
    }

    /// What was read, with its file's digest, for comparing tokenizers.
    pub(super) fn read(&self) -> Option<(&tokenizers::Tokenizer, &str)> {
        self.inner.as_ref().map(|inner| (inner, self.file_digest.as_str()))
    }

    /// Of all that decides which tokens a document becomes.
    pub(super) fn digest(&self) -> String {
        digest::of_text(&format!("{} {:?} {:?} {}", self.file_digest, self.eos, self.brackets, self.vocab))
    }

    /// Text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let inner = self.inner()?;
        guarded(|| inner.decode(ids, true)).map_err(|e| Error::Data(format!("the tokenizer cannot decode: {e}")))
    }

    /// A document's tokens, with the end-of-sequence token after a text; a conversation ends as its template has it.
    pub(super) fn tokenise(&self, document: &Document, wants: Wants) -> Result<Vec<Token>> {
        match document {
            Document::Text(text) => {
                wants.refuse_text()?;
                marked(self.encode(text)?.into_iter().chain(self.eos))
            }
            Document::Tokens(ids) => {
                wants.refuse_text()?;
                self.check(ids)?;
                marked(ids.iter().copied())
            }
            Document::Part(part) => match part.as_ref() {
                Document::Text(text) => {
                    wants.refuse_text()?;
                    marked(self.encode(text)?)
                }
                other => self.tokenise(other, wants),
            },
            Document::Example(example) => self.example(example, wants),
        }
    }

    /// The tokens of a conversation, or of a prompt and its completion: those that do not answer are marked where that is
    /// wanted, and the last of each answer as the end of a turn.
    fn example(&self, example: &Example, wants: Wants) -> Result<Vec<Token>> {
        let (rendered, end) = match example {
            Example::Completion { prompt, completion } => (Rendered::completion(prompt, completion), self.eos),
            Example::Chat(chat) if wants.answers || wants.turns => (self.chat_template()?.render(chat, false)?, None),
            Example::Chat(chat) => {
                let text = self.chat_template()?.text(chat, false)?;
                (Rendered { text, answers: Vec::new(), marks: false }, None)
            }
        };
        let (ids, answers) = self.encode_conversation(&rendered)?;
        let answers: Vec<bool> = answers.into_iter().chain(end.map(|_| true)).collect();
        let mut tokens = marked(ids.into_iter().chain(end))?;
        for (place, token) in tokens.iter_mut().enumerate() {
            let answers_at = |place: usize| answers.get(place) == Some(&true);
            if answers_at(place) && !answers_at(place + 1) {
                *token = token.turn_end();
            }
            if wants.answers && !answers_at(place) {
                *token = token.uncounted();
            }
        }
        Ok(tokens)
    }

    /// The model's own template.
    ///
    /// # Errors
    /// `Data` where the folder has none; as [`ChatTemplate::load`].
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        if let Some(template) = self.template.get() {
            return Ok(template);
        }
        let now = self.now.unwrap_or_else(Moment::today);
        let template = ChatTemplate::load(&self.dir, now)?.ok_or_else(|| {
            let files = "chat_template.jinja, or chat_template in tokenizer_config.json";
            let dir = self.dir.display();
            Error::Data(format!("`{dir}` has no chat template ({files}), so conversations cannot be read; add one"))
        })?;
        Ok(self.template.get_or_init(|| template))
    }

    /// The time that chat templates write; today where it is not set.
    #[must_use]
    pub fn at(mut self, now: Option<Moment>) -> Self {
        self.now = now;
        self
    }

    /// Whether what was read so far has today's date in it, because the template asks for the time and none was set.
    pub fn has_written_today(&self) -> bool {
        self.now.is_none() && self.template.get().is_some_and(ChatTemplate::uses_clock)
    }

    /// Tokens of each document as [`Tokenizer::tokenise`] gives them, texts on all cores.
    pub(super) fn tokenise_all(&self, documents: &[&Document], wants: Wants) -> Result<Vec<Vec<Token>>> {
        let texts: Vec<&str> = documents.iter().filter_map(|document| text_of(document)).collect();
        if texts.len() < 2 || wants.answers {
            return documents.iter().map(|document| self.tokenise(document, wants)).collect();
        }
        let inner = self.inner()?;
        let mut encodings = guarded(|| inner.encode_batch_fast(texts, false)).map_err(refused)?.into_iter();
        let mut all = Vec::with_capacity(documents.len());
        for document in documents {
            if text_of(document).is_none() {
                all.push(self.tokenise(document, wants)?);
                continue;
            }
            let mut ids: Vec<u32> = encodings.next().iter().flat_map(|encoding| encoding.get_ids()).copied().collect();
            self.check(&ids)?;
            ids.extend(self.eos.filter(|_| !matches!(document, Document::Part(_))));
            all.push(marked(ids)?);
        }
        Ok(all)
    }

    /// Refuses ids outside the model's vocabulary.
    ///
    /// # Errors
    /// `Data` naming the first.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(()),
            Some(id) => Err(Error::Data(format!(
                "token {id} lies outside the model's vocabulary of {}; the tokenizer or token file belongs to another model",
                self.vocab
            ))),
        }
    }
}

/// Files of tokenizers in older formats, of which `transformers` makes a tokenizer.json; the surest first.
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
    let is_there = |names: &&&[&str]| names.iter().all(|name| dir.join(name).is_file());
    match OLDER.iter().find(is_there) {
        None => "add it".to_owned(),
        Some(names) => {
            let is_sentencepiece = names.iter().any(|name| name.ends_with(".model"));
            let with = if is_sentencepiece { " (with sentencepiece installed)" } else { "" };
            let (names, dir) = (names.join(" and "), dir.display());
            format!(
                "{names} lies there, of which this makes one{with}: python -c \"from transformers import AutoTokenizer; \
                 AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')\""
            )
        }
    }
}

/// The text of a document, or of a part of one.
fn text_of(document: &Document) -> Option<&str> {
    match document {
        Document::Text(text) => Some(text),
        Document::Part(part) => text_of(part),
        Document::Tokens(_) | Document::Example(_) => None,
    }
}

/// Ids that all count.
fn marked(ids: impl IntoIterator<Item = u32>) -> Result<Vec<Token>> {
    ids.into_iter().map(Token::new).collect()
}

/// The `tokenizers` crate answers some damaged tables with a panic, on opening or on a text, which must not end the process.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // It is only read, so nothing is left half changed.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("it contradicts itself".into()))
}

fn refused(error: tokenizers::Error) -> Error {
    Error::Data(format!("the tokenizer refuses the text: {error}"))
}

/// Added tokens may lie beyond (they are refused when they occur); the tokenizer's own vocabulary may not.
fn check_vocabulary(inner: &tokenizers::Tokenizer, vocab: usize, path: &Path) -> Result<()> {
    let largest = inner.get_vocab(false).into_iter().max_by_key(|(_, id)| *id);
    match largest {
        Some((token, id)) if id as usize >= vocab => Err(Error::checkpoint(
            path,
            format!(
                "token `{token}` has id {id}, the model's vocabulary ends at {}; the tokenizer belongs to another model",
                vocab.saturating_sub(1)
            ),
        )),
        _ => Ok(()),
    }
}
