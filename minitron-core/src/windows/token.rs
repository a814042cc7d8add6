//! A token on its way from a document into a window, with what packing and training have to know of
//! it.

use crate::error::{Error, Result};

/// A token id with marks. Eight bits of the word are kept free for marks, so a stream of tokens can
/// be cut, carried and joined without anything beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u32);

/// The largest vocabulary that leaves room for marks.
const MAX_VOCAB: u32 = 1 << 24;
/// The first token of a document.
const FIRST: u8 = 1;
/// The last token of a turn: a conversation may be cut after it.
const TURN_END: u8 = 1 << 1;
/// Not to be predicted: only answers count.
const UNCOUNTED: u8 = 1 << 2;

impl Token {
    /// A token that counts, inside a document.
    ///
    /// # Errors
    /// `Data` for an id beyond any vocabulary.
    pub fn new(id: u32) -> Result<Self> {
        match id < MAX_VOCAB {
            true => Ok(Token(id)),
            false => Err(Error::Data(format!(
                "token {id}: expected an id below {MAX_VOCAB}"
            ))),
        }
    }

    /// Without marks.
    pub fn id(self) -> u32 {
        self.0 & (MAX_VOCAB - 1)
    }

    /// The marks alone; zero for a token that counts, inside a document.
    pub fn marks(self) -> Marks {
        Marks((self.0 >> 24) as u8)
    }

    /// The tokens of a document, the first one marked as such.
    pub fn begin(mut tokens: Vec<Token>) -> Vec<Token> {
        if let Some(first) = tokens.first_mut() {
            *first = first.first();
        }
        tokens
    }

    fn marked(self, mark: u8) -> Self {
        Token(self.0 | u32::from(mark) << 24)
    }

    /// The same token as the first one of a document.
    #[must_use]
    pub fn first(self) -> Self {
        self.marked(FIRST)
    }

    /// The same token as the last one of a turn.
    #[must_use]
    pub fn turn_end(self) -> Self {
        self.marked(TURN_END)
    }

    /// The same token, not to be predicted.
    #[must_use]
    pub fn uncounted(self) -> Self {
        self.marked(UNCOUNTED)
    }
}

/// What is known of a token besides its id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks(u8);

impl Marks {
    /// Whether it begins a document.
    pub fn begins_document(self) -> bool {
        self.0 & FIRST != 0
    }

    /// Whether it ends a turn of a conversation.
    pub fn ends_turn(self) -> bool {
        self.0 & TURN_END != 0
    }

    /// Whether its prediction counts.
    pub fn counts(self) -> bool {
        self.0 & UNCOUNTED == 0
    }

    /// As one number.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Those that decide what is learned from the token, where attention stays inside documents or
    /// not.
    pub(super) fn that_decide(self, inside_documents: bool) -> Marks {
        Marks(
            self.0
                & if inside_documents {
                    FIRST | UNCOUNTED
                } else {
                    UNCOUNTED
                },
        )
    }
}

/// Whether something is predicted in a window of these tokens: nothing is where none after the
/// first counts.
pub fn predicts(run: &[Token]) -> bool {
    run.iter().skip(1).any(|token| token.marks().counts())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_ride_on_ids_and_come_off() {
        let token = Token::new(77).unwrap().first().uncounted();
        assert_eq!(token.id(), 77);
        assert!(
            token.marks().begins_document()
                && !token.marks().counts()
                && !token.marks().ends_turn()
        );
        assert_eq!(token.turn_end().marks().bits(), 0b111);
        assert_eq!(Token::new(5).unwrap().marks(), Marks::default());
        assert!(Token::new(1 << 24).is_err());
    }
}
