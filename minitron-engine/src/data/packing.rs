//! Documents of any length as windows: several whole ones together, long ones cut where a turn
//! ends.

use minitron_core::windows::Token;

/// Windows that are filled side by side; the fullest is closed when one more is needed.
const MOST_OPEN: usize = 64;

/// Packs documents whole into windows of at most `seq_len` tokens.
///
/// A document goes into the fullest window that has room for it, among those begun last (best fit).
/// One longer than a window is cut into pieces first ([`cut_at_turns`]). The order of documents
/// alone decides.
#[derive(Debug)]
pub(super) struct WholePacker {
    seq_len: usize,
    open: Vec<Vec<Token>>,
    closed: Vec<Vec<Token>>,
}

impl WholePacker {
    pub fn new(seq_len: usize) -> Self {
        WholePacker {
            seq_len,
            open: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// Takes in one document.
    pub fn push(&mut self, document: &[Token]) {
        for piece in cut_at_turns(document, self.seq_len) {
            self.place(piece);
        }
    }

    fn place(&mut self, piece: &[Token]) {
        let room = self.seq_len.saturating_sub(piece.len());
        let fitting = self.open.iter_mut().filter(|window| window.len() <= room);
        match fitting.max_by_key(|window| window.len()) {
            Some(window) => window.extend(begun(piece)),
            None => {
                if self.open.len() >= MOST_OPEN {
                    self.close_fullest();
                }
                self.open.push(begun(piece).collect());
            }
        }
        while self
            .open
            .iter()
            .any(|window| window.len() + 1 >= self.seq_len)
        {
            self.close_fullest();
        }
    }

    fn close_fullest(&mut self) {
        let fullest = self
            .open
            .iter()
            .enumerate()
            .max_by_key(|(_, window)| window.len());
        if let Some((idx, _)) = fullest {
            self.closed.push(self.open.remove(idx));
        }
    }

    /// Windows that nothing is added to any more.
    pub fn n_closed(&self) -> usize {
        self.closed.len()
    }

    /// All windows, in the order in which they were closed.
    pub fn finish(mut self) -> Vec<Vec<Token>> {
        self.closed.append(&mut self.open);
        self.closed
    }
}

/// A piece as a document of its own: what follows a cut stands beside strangers too.
fn begun(piece: &[Token]) -> impl Iterator<Item = Token> {
    piece
        .iter()
        .enumerate()
        .map(|(place, token)| if place == 0 { token.first() } else { *token })
}

/// A document in pieces of at most `seq_len` tokens.
///
/// Each piece ends with the last turn that it has room for, so no piece begins or ends inside a
/// turn. Of a single turn longer than a window what has no room is left out. A document without
/// turns is cut every `seq_len` tokens.
pub(super) fn cut_at_turns(document: &[Token], seq_len: usize) -> Vec<&[Token]> {
    let (mut pieces, mut rest) = (Vec::new(), document);
    while rest.len() > seq_len {
        let window = rest.get(..seq_len).unwrap_or(rest);
        let end_of_turn = window.iter().rposition(|token| token.marks().ends_turn());
        let (taken, next) = match end_of_turn {
            Some(last) => (last + 1, last + 1),
            None => {
                let after = rest.iter().position(|token| token.marks().ends_turn());
                (seq_len, after.map_or(seq_len, |last| last + 1))
            }
        };
        pieces.extend(rest.get(..taken));
        // Turns end inside of it.
        rest = rest.split_at(next.min(rest.len())).1;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Turns of these lengths.
    fn conversation(turns: &[usize]) -> Vec<Token> {
        let mut tokens = Vec::new();
        for (turn, &len) in turns.iter().enumerate() {
            tokens.extend((0..len).map(|_| Token::new(turn as u32).unwrap()));
            if let Some(last) = tokens.last_mut() {
                *last = last.turn_end();
            }
        }
        tokens
    }

    #[test]
    fn long_conversations_are_cut_where_turns_end() {
        let tokens = conversation(&[3, 4, 2, 5, 12, 1]);
        let lengths: Vec<usize> = cut_at_turns(&tokens, 8)
            .iter()
            .map(|piece| piece.len())
            .collect();
        // Turns 3+4, 2+5, of the one of 12 the first 8, 1.
        assert_eq!(lengths, [7, 7, 8, 1]);
        let plain: Vec<Token> = (0..19).map(|id| Token::new(id).unwrap()).collect();
        assert_eq!(cut_at_turns(&plain, 8).concat(), plain);
    }

    proptest! {
        #[test]
        fn whole_documents_stay_whole_and_none_is_lost(
            lengths in prop::collection::vec(1..30usize, 1..300),
        ) {
            let mut packer = WholePacker::new(32);
            for (number, &len) in lengths.iter().enumerate() {
                let id = Token::new(number as u32).unwrap();
                packer.push(&[vec![id.first()], vec![id; len - 1]].concat());
            }
            let windows = packer.finish();
            prop_assert!(windows.iter().all(|window| window.len() <= 32));
            let mut found = vec![0; lengths.len()];
            for run in windows.iter().flat_map(|window| window.chunk_by(|a, b| a.id() == b.id())) {
                prop_assert!(run[0].marks().begins_document());
                prop_assert_eq!(found[run[0].id() as usize], 0);
                found[run[0].id() as usize] = run.len();
            }
            prop_assert_eq!(found, lengths);
        }
    }
}
