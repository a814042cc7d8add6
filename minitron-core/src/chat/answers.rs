//! What the assistant said, where the template does not mark it.
//!
//! An answer is what its message adds to the text of the messages before, where that text begins the whole. A template that
//! renders earlier turns otherwise than the last one (it strips their reasoning, say) is asked twice more, with another content
//! in the message's place: what comes before and after it does not depend on the content, so the answer is what lies between.
//! Where neither tells, that is an error: a wrong mask would train a model on what its users say.

use std::ops::Range;

use super::conversation::{Message, message, role_of};
use super::template::{Call, REASONING};
use crate::error::{Error, Result};

/// Contents of one character, none of which any template writes, so that they differ from what it writes.
const STAND_INS: [&str; 2] = ["\u{fdee}", "\u{fdef}"];

/// See [`super::ChatTemplate::render`].
pub(super) fn by_prefixes(call: &Call, full: &str, add_generation_prompt: bool) -> Result<Vec<Range<usize>>> {
    let mut answers: Vec<Range<usize>> = Vec::new();
    let messages = call.conversation.messages.iter().enumerate();
    for (idx, _) in messages.skip(call.conversation.n_prompt).filter(|(_, m)| role_of(m) == Some("assistant")) {
        let turn = Turn { call, full, idx, add_generation_prompt };
        let answer = turn.by_prefix().or_else(|| turn.by_stand_ins()).ok_or_else(|| turn.untold())?;
        let is_after = answers.last().is_none_or(|last| last.end <= answer.start);
        if !is_after || full.get(answer.clone()).is_none() {
            return Err(turn.untold());
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// An assistant's message in a conversation that was rendered.
struct Turn<'t, 'c> {
    call: &'t Call<'c>,
    full: &'t str,
    idx: usize,
    add_generation_prompt: bool,
}

impl Turn<'_, '_> {
    fn untold(&self) -> Error {
        let message = "what the assistant says there cannot be told from the rest: the template renders it otherwise in the \
                       whole conversation than at its end";
        let number = self.idx.saturating_add(1);
        Error::Data(format!(
            "{}: message {number}: {message}; put `{{% generation %}}` and `{{% endgeneration %}}` around it in the template",
            self.call.origin()
        ))
    }

    /// Messages before this one.
    fn before(&self) -> &[Message] {
        self.call.conversation.messages.get(..self.idx).unwrap_or_default()
    }

    /// Those up to this one, with another in its place.
    fn up_to(&self, message: Message) -> Option<String> {
        let messages: Vec<Message> = self.before().iter().cloned().chain([message]).collect();
        self.call.text(&messages, false).ok()
    }

    /// What this message adds to the text of those before, which must begin the whole text.
    fn by_prefix(&self) -> Option<Range<usize>> {
        let own = self.call.conversation.messages.get(self.idx)?;
        let after = self.up_to(own.clone())?;
        if !self.full.starts_with(&after) {
            return None;
        }
        let start = self.start(&after)?;
        let said = after.get(start..)?;
        let end = start.checked_add(self.without_space_after(said))?;
        Some(start..end)
    }

    /// Where the answer begins in the text that ends with it: after the generation prompt, as far as the template writes it
    /// before an answer too.
    fn start(&self, after: &str) -> Option<usize> {
        let headed = self.headed();
        if self.idx == 0 {
            return headed.filter(|headed| after.starts_with(headed.as_str())).map(|headed| headed.len());
        }
        let before = self.call.text(self.before(), false).ok();
        let prompted = self.call.text(self.before(), true).ok()?;
        let writes_none = before.as_ref() == Some(&prompted);
        if after.starts_with(&prompted) && !writes_none {
            return Some(prompted.len());
        }
        // A template without a generation prompt, or with one that goes on to open the reasoning.
        let headed = headed?;
        let start = common_prefix(&headed, if writes_none { &headed } else { &prompted });
        let is_turn = before.is_none_or(|before| start >= before.len() && after.starts_with(&before));
        (is_turn && after.starts_with(headed.get(..start)?)).then_some(start)
    }

    /// All that comes before the content, whatever the content.
    fn headed(&self) -> Option<String> {
        let [one, other] = self.two_stand_ins();
        let (one, other) = (self.up_to(one)?, self.up_to(other)?);
        one.get(..common_prefix(&one, &other)).map(str::to_owned)
    }

    /// Bytes of an answer without the white space that the template writes after the end of the turn.
    fn without_space_after(&self, said: &str) -> usize {
        let [one, _] = self.two_stand_ins();
        match self.end_of_turn(one) {
            Some(end) if said.ends_with(&end) => said.len() - end.len() + without_space(&end).len(),
            _ => said.len(),
        }
    }

    /// What follows a content of one character.
    fn end_of_turn(&self, stand_in: Message) -> Option<String> {
        let text = self.up_to(stand_in)?;
        text.rsplit_once(STAND_INS[0]).map(|(_, end)| end.to_owned())
    }

    /// A plain message with contents that differ in their first and last character.
    fn two_stand_ins(&self) -> [Message; 2] {
        [0, 1].map(|n| message("assistant", STAND_INS.get(n).copied().unwrap_or_default()))
    }

    /// By what surrounds other contents in its place, in the whole text.
    fn by_stand_ins(&self) -> Option<Range<usize>> {
        let own = self.call.conversation.messages.get(self.idx)?;
        let [one, other] = self.two_stand_ins().map(|mut stand_in| {
            // Messages of tools need the calls that they answer.
            let rest = own.iter().filter(|(key, _)| !REASONING.contains(&key.as_str()) && *key != "content");
            stand_in.extend(rest.map(|(key, value)| (key.clone(), value.clone())));
            stand_in
        });
        let end = self.end_of_turn(one.clone())?;
        let (one, other) = (self.instead(one)?, self.instead(other)?);
        let start = common_prefix(&one, &other);
        let n_after = common_suffix(&one, &other);
        let is_alone = one.len() == start + n_after + STAND_INS[0].len();
        let after = one.get(one.len().checked_sub(n_after)?..)?;
        let surrounds = self.full.len() >= start + n_after
            && self.full.ends_with(after)
            && self.full.get(..start) == one.get(..start);
        let kept = without_space(&end);
        (is_alone && surrounds && after.starts_with(kept)).then(|| start..self.full.len() - n_after + kept.len())
    }

    /// The whole conversation with another message in this one's place.
    fn instead(&self, message: Message) -> Option<String> {
        let mut messages = self.call.conversation.messages.clone();
        *messages.get_mut(self.idx)? = message;
        self.call.text(&messages, self.add_generation_prompt).ok()
    }
}

/// An end of turn without the white space that follows it; white space alone is the end itself.
fn without_space(end: &str) -> &str {
    if end.trim().is_empty() { end } else { end.trim_end() }
}

/// Bytes that two texts end with in common.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

/// Bytes that two texts begin with in common.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}
