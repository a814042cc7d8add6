//! A conversation as text, and which of it the assistant said.

use super::answers::{self, Answers};
use super::engine;
use super::template::{ChatTemplate, Rendered};
use minitron_core::conversation::Conversation;
use minitron_core::error::Result;

impl ChatTemplate {
    /// The text, and which of it the assistant said.
    ///
    /// Where the template marks it, that is what the marks enclose. Otherwise it is what an
    /// assistant's message adds to the rendering of those before it, from after the generation
    /// prompt up to and with the end of the turn; white space after the end of the turn is left
    /// out.
    ///
    /// # Errors
    /// As [`ChatTemplate::text`]; `Data` where answers cannot be told apart, which marks in the
    /// template would mend.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let call = self.call(conversation)?;
        engine::apart(call.origin(), || {
            let text = call.text(&conversation.messages, add_generation_prompt)?;
            let marks = call.engine.has_marks();
            let Answers {
                answers,
                weightless,
            } = match marks {
                true => {
                    let marked = call.marked(&text, add_generation_prompt)?;
                    let weightless =
                        answers::weightless(&call, (&text, &marked), add_generation_prompt)?;
                    Answers {
                        answers: marked,
                        weightless,
                    }
                }
                false => answers::by_prefixes(&call, &text, add_generation_prompt)?,
            };
            Ok(Rendered {
                text,
                answers,
                weightless,
                marks,
            })
        })
    }
}
