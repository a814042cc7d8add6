//! What single batches showed, each by itself. Scores come from these parts, added up in the order
//! of the batches: so it does not matter which process saw which.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use minitron_core::contract::Scorer;
use minitron_core::error::{Error, Result};

/// A scorer of a set: its slot, then 0 for the one of all windows and n + 1 for that of fold n.
pub(super) type ScorerKey = (usize, usize);

/// What one scorer made of one batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub key: ScorerKey,
    pub state: Vec<f64>,
}

/// Scorers that have seen nothing but the batch under way.
#[derive(Debug, Default)]
pub(super) struct FreshScorers(BTreeMap<ScorerKey, Box<dyn Scorer>>);

impl FreshScorers {
    /// One of them, made when it is first asked for.
    pub fn get(
        &mut self,
        key: ScorerKey,
        make: impl FnOnce() -> Result<Box<dyn Scorer>>,
    ) -> Result<&mut dyn Scorer> {
        let scorer = match self.0.entry(key) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(make()?),
        };
        Ok(scorer.as_mut())
    }

    /// What they saw; none is left.
    pub fn take(&mut self) -> Vec<Part> {
        let scorers = std::mem::take(&mut self.0);
        let parts = scorers.into_iter().map(|(key, scorer)| Part {
            key,
            state: scorer.state(),
        });
        parts.collect()
    }
}

/// Parts as plain numbers, for files and other ranks. Of each: its scorer, the length of its state,
/// and the state in runs: so many numbers, or, below nothing, so many zeros. What a layer showed
/// to a scorer of all layers is zeros for the most part.
pub(super) fn encoded(parts: &[Part]) -> Vec<f64> {
    let mut numbers = Vec::new();
    for Part { key, state } in parts {
        numbers.extend([key.0 as f64, key.1 as f64, state.len() as f64]);
        for run in state.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len = run.len() as f64;
            if run.first().is_some_and(is_zero) {
                numbers.push(-len);
            } else {
                numbers.push(len);
                numbers.extend_from_slice(run);
            }
        }
    }
    numbers
}

/// Not the one with a sign, which would come back without it.
fn is_zero(number: &f64) -> bool {
    number.to_bits() == 0
}

/// The same read back.
///
/// # Errors
/// `Internal` for other numbers.
pub(super) fn decoded(numbers: &[f64]) -> Result<Vec<Part>> {
    let mut numbers = numbers.iter().copied();
    let mut parts = Vec::new();
    while let Some(slot) = numbers.next() {
        let fold = numbers.next().ok_or_else(foreign)?;
        let len = numbers.next().ok_or_else(foreign)? as usize;
        let mut state = Vec::new();
        while state.len() < len {
            let run = numbers.next().ok_or_else(foreign)?;
            let end = state.len().saturating_add(run.abs() as usize);
            if run < 0.0 && end <= len {
                state.resize(end, 0.0);
            } else {
                state.extend(numbers.by_ref().take(run as usize));
            }
            if run.abs() < 1.0 || state.len() != end || end > len {
                return Err(foreign());
            }
        }
        parts.push(Part {
            key: (slot as usize, fold as usize),
            state,
        });
    }
    Ok(parts)
}

fn foreign() -> Error {
    Error::Internal("numbers that are no parts of a scoring".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_with_all_their_bits() {
        let part = |slot, fold, state: &[f64]| Part {
            key: (slot, fold),
            state: state.to_vec(),
        };
        let parts = [
            part(0, 0, &[0.0, 0.0, 1.5, -2.0, 0.0]),
            part(3, 2, &[]),
            part(3, 7, &[-0.0, f64::INFINITY, 0.0, 5e-324]),
        ];
        let numbers = encoded(&parts);
        let back = decoded(&numbers).unwrap();
        assert_eq!(back, parts);
        assert!(back[2].state[0].is_sign_negative());
        assert!(decoded(&[]).unwrap().is_empty());
        for end in 1..numbers.len() {
            if let Ok(fewer) = decoded(&numbers[..end]) {
                assert!(fewer.len() < parts.len(), "{end}");
            }
        }
        for wrong in [[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 2.0, -3.0]] {
            assert!(decoded(&wrong).is_err());
        }
    }
}
