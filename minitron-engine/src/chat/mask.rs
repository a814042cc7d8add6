//! From characters that count to tokens that count.

use std::ops::Range;

/// Which tokens lie in the ranges, by where each came from in the text. Offsets and ranges count
/// the same thing: characters, or bytes.
///
/// As `transformers` has it in `assistant_masks`: from the token of a range's first character to
/// the first token of its last. Where a tokenizer drops those characters, `transformers` marks all
/// that follows, or nothing more; here the nearest token inside the range counts.
pub fn token_mask(offsets: &[(usize, usize)], ranges: &[Range<usize>]) -> Vec<bool> {
    let mut mask = vec![false; offsets.len()];
    for range in ranges.iter().filter(|range| range.start < range.end) {
        let Some((first, last)) = tokens_of(offsets, range) else {
            continue;
        };
        if let Some(tokens) = mask.get_mut(first..=last) {
            tokens.fill(true);
        }
    }
    mask
}

/// The first and last token of a range.
fn tokens_of(offsets: &[(usize, usize)], range: &Range<usize>) -> Option<(usize, usize)> {
    let first = token_at(offsets, range.start)
        .or_else(|| offsets.iter().position(|&token| is_inside(token, range)))?;
    let last = token_at(offsets, range.end.saturating_sub(1))
        .or_else(|| offsets.iter().rposition(|&token| is_inside(token, range)))?;
    (first <= last).then_some((first, last))
}

/// The first token that holds a place of the text.
fn token_at(offsets: &[(usize, usize)], place: usize) -> Option<usize> {
    offsets
        .iter()
        .position(|&(start, end)| start <= place && place < end)
}

fn is_inside((start, end): (usize, usize), range: &Range<usize>) -> bool {
    start < end && range.start <= start && end <= range.end
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a single range is a list of one"
)]
mod tests {
    use super::*;

    #[test]
    fn tokens_from_the_first_character_to_the_first_of_the_last() {
        let offsets = [(0, 2), (2, 5), (5, 6), (5, 6), (6, 9)];
        let mask = |ranges: &[Range<usize>]| token_mask(&offsets, ranges);
        assert_eq!(mask(&[2..5]), [false, true, false, false, false]);
        // A character in several tokens: the first one ends the range, as in transformers.
        assert_eq!(mask(&[3..6]), [false, true, true, false, false]);
        assert_eq!(mask(&[0..1, 8..9]), [true, false, false, false, true]);
        assert_eq!(mask(&[4..4]), [false; 5]);
        assert_eq!(mask(&[9..12]), [false; 5]);
    }

    #[test]
    fn what_a_tokenizer_drops_counts_neither_less_nor_more() {
        // Words; spaces belong to no token.
        let offsets = [(0, 2), (3, 5), (6, 8), (9, 11)];
        assert_eq!(token_mask(&offsets, &[2..6]), [false, true, false, false]);
        assert_eq!(token_mask(&offsets, &[5..6]), [false; 4]);
    }
}
