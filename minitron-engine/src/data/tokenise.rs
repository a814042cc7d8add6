//! Documents to tokens: texts with their end, conversations by the model's chat template.

use super::tokenizer::{Tokenizer, guarded, refused};
use crate::chat::{ChatTemplate, Moment, Rendered, token_mask};
use minitron_core::contract::Document;
use minitron_core::conversation::{Conversation, Example};
use minitron_core::error::{Error, Result};
use minitron_core::windows::{Token, Tokenize};

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

impl Tokenizer {
    /// Token ids of a conversation's text, whose template brought the special tokens, and which of
    /// them the assistant said.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_conversation(&self, rendered: &Rendered) -> Result<(Vec<u32>, Vec<bool>)> {
        let Conversed { ids, answers, .. } = self.converse(rendered)?;
        Ok((ids, answers))
    }

    fn converse(&self, rendered: &Rendered) -> Result<Conversed> {
        let inner = self.inner()?;
        let encoding = guarded(|| inner.encode_char_offsets(rendered.text.as_str(), false))
            .map_err(refused)?;
        let ids = encoding.get_ids().to_vec();
        self.check(&ids)?;
        let offsets = encoding.get_offsets();
        Ok(Conversed {
            ids,
            answers: token_mask(offsets, &rendered.in_chars(&rendered.answers)),
            weightless: token_mask(offsets, &rendered.in_chars(&rendered.weightless)),
        })
    }

    /// A document's tokens, with the end-of-sequence token after a text; a conversation ends as its
    /// template has it.
    pub(super) fn tokenise(&self, document: &Document, wants: Wants) -> Result<Vec<Token>> {
        match document {
            Document::Text(text) => {
                wants.refuse_text()?;
                marked(self.encode(text)?.into_iter().chain(self.eos()))
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

    /// The tokens of a conversation, or of a prompt and its completion: those that do not answer
    /// are marked where that is wanted, and the last of each answer as the end of a turn.
    fn example(&self, example: &Example, wants: Wants) -> Result<Vec<Token>> {
        let (rendered, end) = match example {
            Example::Completion { prompt, completion } => {
                (Rendered::completion(prompt, completion), self.eos())
            }
            Example::Chat(chat) => (self.rendered(chat, wants)?, None),
        };
        let Conversed {
            ids,
            answers,
            weightless,
        } = self.converse(&rendered)?;
        let answers: Vec<bool> = answers.into_iter().chain(end.map(|_| true)).collect();
        let mut tokens = marked(ids.into_iter().chain(end))?;
        for (place, token) in tokens.iter_mut().enumerate() {
            let is_answer = answers.get(place) == Some(&true);
            if is_answer && answers.get(place + 1) != Some(&true) {
                *token = token.turn_end();
            }
            if wants.answers && (!is_answer || weightless.get(place) == Some(&true)) {
                *token = token.uncounted();
            }
        }
        Ok(tokens)
    }

    /// A conversation's text, with its answers where they are needed. Where turns end is only of
    /// use: a conversation whose template cannot tell is one turn.
    fn rendered(&self, chat: &Conversation, wants: Wants) -> Result<Rendered> {
        let template = self.chat_template()?;
        if wants.answers {
            return template.render(chat, false);
        }
        if wants.turns
            && let Ok(rendered) = template.render(chat, false)
        {
            return Ok(rendered);
        }
        Ok(Rendered {
            text: template.text(chat, false)?,
            answers: Vec::new(),
            weightless: Vec::new(),
            marks: false,
        })
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
            Error::Data(format!(
                "`{dir}` has no chat template ({files}), so conversations cannot be read; add one"
            ))
        })?;
        Ok(self.template.get_or_init(|| template))
    }

    /// The time that chat templates write; today where it is not set.
    #[must_use]
    pub fn at(mut self, now: Option<Moment>) -> Self {
        self.now = now;
        self
    }

    /// Whether what was read so far has today's date in it, because the template asks for the time
    /// and none was set.
    pub fn has_written_today(&self) -> bool {
        self.now.is_none() && self.template.get().is_some_and(ChatTemplate::uses_clock)
    }

    /// Tokens of each document as [`Tokenizer::tokenise`] gives them, texts on all cores.
    pub(super) fn tokenise_all(
        &self,
        documents: &[&Document],
        wants: Wants,
    ) -> Result<Vec<Vec<Token>>> {
        let texts: Vec<&str> = documents
            .iter()
            .filter_map(|document| text_of(document))
            .collect();
        if texts.len() < 2 || wants.answers {
            return documents
                .iter()
                .map(|document| self.tokenise(document, wants))
                .collect();
        }
        let inner = self.inner()?;
        let mut encodings = guarded(|| inner.encode_batch_fast(texts, false))
            .map_err(refused)?
            .into_iter();
        let mut all = Vec::with_capacity(documents.len());
        for document in documents {
            if text_of(document).is_none() {
                all.push(self.tokenise(document, wants)?);
                continue;
            }
            let mut ids: Vec<u32> = encodings
                .next()
                .iter()
                .flat_map(|encoding| encoding.get_ids())
                .copied()
                .collect();
            self.check(&ids)?;
            ids.extend(
                self.eos()
                    .filter(|_| !matches!(document, Document::Part(_))),
            );
            all.push(marked(ids)?);
        }
        Ok(all)
    }
}

/// A conversation's tokens.
struct Conversed {
    ids: Vec<u32>,
    /// Which of them the assistant said.
    answers: Vec<bool>,
    /// Which of these do not count.
    weightless: Vec<bool>,
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
