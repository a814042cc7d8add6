//! What the assistant said, where the template does not mark it.
//!
//! An answer is what its message adds to the text of the messages before it and the generation
//! prompt: what a model that is asked goes on with. Where that does not begin the whole text (a
//! template strips the reasoning of earlier turns, say), the whole is rendered twice more with
//! stand-ins in the message's place: what surrounds both alike surrounds the answer too. Where
//! neither tells, that is an error: a wrong mask would train a model on what its users say.

use std::ops::Range;

use super::template::{Call, REASONING};
use minitron_core::conversation::{Conversation, Message, is_weightless, message, role_of};
use minitron_core::error::{Error, Result};

/// Contents that no template writes and that begin and end differently.
const STAND_INS: [&str; 2] = ["\u{fdee}", "\u{fdef}"];

/// See [`super::ChatTemplate::render`].
pub(super) fn by_prefixes(call: &Call, full: &str, add_generation_prompt: bool) -> Result<Answers> {
    let mut answers: Vec<Range<usize>> = Vec::new();
    let mut weightless = Vec::new();
    for (idx, own) in assistant(call.conversation) {
        let turn = AnswerTurn {
            call,
            full,
            idx,
            own,
            add_generation_prompt,
        };
        let answer = turn
            .by_prefix()
            .or_else(|| turn.by_stand_ins())
            .ok_or_else(|| turn.untold())?;
        let is_after = answers.last().is_none_or(|last| last.end <= answer.start);
        if !is_after || full.get(answer.clone()).is_none() {
            return Err(turn.untold());
        }
        if is_weightless(own) {
            weightless.push(answer.clone());
        }
        answers.push(answer);
    }
    Ok(Answers {
        answers,
        weightless,
    })
}

/// Those of the marked answers that do not count: where the messages of no weight are.
pub(super) fn weightless(
    call: &Call,
    (full, marked): (&str, &[Range<usize>]),
    add_generation_prompt: bool,
) -> Result<Vec<Range<usize>>> {
    if !assistant(call.conversation).any(|(_, own)| is_weightless(own)) {
        return Ok(Vec::new());
    }
    let message = "the template marks the answers, but which of them is that of a message of \
                   `weight` 0 cannot be told";
    let Ok(found) = by_prefixes(call, full, add_generation_prompt) else {
        return Err(Error::Data(format!(
            "{}: {message}; leave that conversation out",
            call.origin()
        )));
    };
    let mut weightless = marked.to_vec();
    weightless.retain(|range| found.weightless.iter().any(|other| overlap(range, other)));
    Ok(weightless)
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What the assistant said, and what of it does not count.
pub(super) struct Answers {
    pub(super) answers: Vec<Range<usize>>,
    pub(super) weightless: Vec<Range<usize>>,
}

/// Messages that answer, with their places.
fn assistant(conversation: &Conversation) -> impl Iterator<Item = (usize, &Message)> {
    let messages = conversation
        .messages
        .iter()
        .enumerate()
        .skip(conversation.n_prompt);
    messages.filter(|(_, message)| role_of(message) == Some("assistant"))
}

/// An assistant's message in a conversation that was rendered.
struct AnswerTurn<'t, 'c> {
    call: &'t Call<'c>,
    full: &'t str,
    idx: usize,
    own: &'t Message,
    add_generation_prompt: bool,
}

impl AnswerTurn<'_, '_> {
    fn untold(&self) -> Error {
        let (origin, number) = (self.call.origin(), self.idx + 1);
        Error::Data(format!(
            "{origin}: message {number}: what the assistant says there cannot be told from the \
             rest: the template renders it otherwise in the whole conversation than at its end; \
             put `{{% generation %}}` and `{{% endgeneration %}}` around it in the template"
        ))
    }

    /// Messages before this one.
    fn before(&self) -> &[Message] {
        self.call
            .conversation
            .messages
            .get(..self.idx)
            .unwrap_or_default()
    }

    /// Those up to this one, with another in its place.
    fn up_to(&self, message: Message, add_generation_prompt: bool) -> Option<String> {
        let messages: Vec<Message> = self.before().iter().cloned().chain([message]).collect();
        self.call.text(&messages, add_generation_prompt).ok()
    }

    /// What this message adds to the text of those before, which must begin the whole text.
    fn by_prefix(&self) -> Option<Range<usize>> {
        let after = self.up_to(self.own.clone(), false)?;
        let start = self.start(&after)?;
        let said = after.get(start..)?;
        let n_said = match self.end_of_turn(plain(STAND_INS[0])) {
            Some(end) if said.ends_with(&end.at_the_end) => {
                said.len() - end.at_the_end.len() + end.kept.len()
            }
            _ => said.len(),
        };
        let end = start + n_said;
        // What a template writes at the end of a text alone is no part of the whole.
        self.full
            .starts_with(after.get(..end)?)
            .then_some(start..end)
    }

    /// Where the answer begins in the text that ends with it: where a model that is asked goes on.
    fn start(&self, after: &str) -> Option<usize> {
        if self.idx > 0 {
            let prompted = self.call.text(self.before(), true).ok()?;
            if after.starts_with(&prompted) {
                // Some templates write their prompt after a user's message alone, but open every
                // answer with it.
                let usual = self.usual_prompt().filter(|_| {
                    self.call.text(self.before(), false).ok() == Some(prompted.clone())
                });
                let usual = usual.filter(|usual| {
                    after
                        .get(prompted.len()..)
                        .is_some_and(|said| said.starts_with(usual))
                });
                return Some(prompted.len() + usual.map_or(0, |usual| usual.len()));
            }
            // A prompt that goes on to open the reasoning, which the template writes of no answer.
            let headed = self.headed()?;
            let n_common = common_prefix(&headed, &prompted);
            let before = self.call.text(self.before(), false).ok()?;
            return (before.len() < n_common && after.starts_with(headed.get(..n_common)?))
                .then_some(n_common);
        }
        let headed = self.headed()?;
        after.starts_with(&headed).then_some(headed.len())
    }

    /// What the template writes to open an answer to a user's message.
    fn usual_prompt(&self) -> Option<String> {
        let asked = [message("user", STAND_INS[0])];
        let (before, prompted) = (
            self.call.text(&asked, false).ok()?,
            self.call.text(&asked, true).ok()?,
        );
        prompted.strip_prefix(&before).map(str::to_owned)
    }

    /// All that comes before the content, whatever the content.
    fn headed(&self) -> Option<String> {
        let [one, other] = STAND_INS.map(|content| self.up_to(plain(content), false));
        let (one, other) = (one?, other?);
        one.get(..common_prefix(&one, &other)).map(str::to_owned)
    }

    /// What follows a stand-in, whether the text ends there or goes on with a generation prompt.
    fn end_of_turn(&self, stand_in: Message) -> Option<EndOfTurn> {
        let [ends, goes_on] = [false, true].map(|prompt| {
            let text = self.up_to(stand_in.clone(), prompt)?;
            text.rsplit_once(STAND_INS[0])
                .map(|(_, end)| end.to_owned())
        });
        let at_the_end = ends?;
        let common = match &goes_on {
            Some(goes_on) if !goes_on.starts_with(&at_the_end) => {
                let common = at_the_end.get(..common_prefix(&at_the_end, goes_on))?;
                // Two special tokens may begin alike.
                common
                    .rfind(char::is_whitespace)
                    .and_then(|at| common.get(..at))?
            }
            _ => &at_the_end,
        };
        // White space after the end of the turn is no part of it; white space alone is the end
        // itself.
        let kept = if common.trim().is_empty() {
            common
        } else {
            common.trim_end()
        };
        let kept = kept.to_owned();
        Some(EndOfTurn { kept, at_the_end })
    }

    /// By what surrounds stand-ins in the whole text: for the whole message, or for its content
    /// alone where messages of tools need the calls that they answer.
    fn by_stand_ins(&self) -> Option<Range<usize>> {
        let own = self.between(STAND_INS.map(plain));
        own.or_else(|| self.between(STAND_INS.map(|content| self.with_calls(content))))
    }

    /// This message with another content and without reasoning.
    fn with_calls(&self, content: &str) -> Message {
        let mut message = plain(content);
        for (key, value) in self.own {
            if !REASONING.contains(&key.as_str()) && key != "content" {
                message.insert(key.clone(), value.clone());
            }
        }
        message
    }

    fn between(&self, [one, other]: [Message; 2]) -> Option<Range<usize>> {
        let end = self.end_of_turn(one.clone())?;
        let (one, other) = (self.instead(one)?, self.instead(other)?);
        let start = common_prefix(&one, &other);
        let n_after = common_suffix(&one, &other);
        let is_alone = one.len() == start + n_after + STAND_INS[0].len();
        let after = one.get(one.len().checked_sub(n_after)?..)?;
        let is_around = self.full.len() >= start + n_after
            && self.full.ends_with(after)
            && self.full.get(..start) == one.get(..start);
        (is_alone && is_around && after.starts_with(&end.kept))
            .then(|| start..self.full.len() - n_after + end.kept.len())
    }

    /// The whole conversation with another message in this one's place.
    fn instead(&self, message: Message) -> Option<String> {
        let mut messages = self.call.conversation.messages.clone();
        *messages.get_mut(self.idx)? = message;
        self.call.text(&messages, self.add_generation_prompt).ok()
    }
}

/// What a template writes after a content.
struct EndOfTurn {
    /// Counted.
    kept: String,
    /// All of it, where the text ends.
    at_the_end: String,
}

fn plain(content: &str) -> Message {
    message("assistant", content)
}

/// Bytes that two texts begin with in common.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(c, _)| c.len_utf8())
        .sum()
}

/// Bytes that two texts end with in common.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars()
        .rev()
        .zip(b.chars().rev())
        .take_while(|(a, b)| a == b)
        .map(|(c, _)| c.len_utf8())
        .sum()
}
