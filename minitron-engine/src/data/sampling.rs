//! Which windows of a text are looked at, where it holds more than are wanted.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use minitron_core::error::{Error, Result};
use minitron_core::random::SplitMix;

/// So many times the windows that are wanted are read, where they are spread.
const SPREAD_OVER: usize = 32;
/// Tokens that are read at most, where no more are wanted.
const MOST_TOKENS: usize = 1 << 24;

/// Which windows of a text are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowSampling {
    /// The first ones.
    #[default]
    First,
    /// One at random from each of as many equal stretches of the text's first 32 times as many
    /// windows, or of as many as make 16M tokens: neighbours are of one kind, and what is fitted to
    /// one document fits others less.
    Spread,
}

impl FromStr for WindowSampling {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "first" => Ok(WindowSampling::First),
            "spread" => Ok(WindowSampling::Spread),
            other => Err(Error::unknown("sampling", other, ["first", "spread"])),
        }
    }
}

impl WindowSampling {
    /// Windows to read, of which so many are wanted.
    pub(super) fn n_read(self, wanted: usize, seq_len: usize) -> usize {
        match self {
            WindowSampling::First => wanted,
            WindowSampling::Spread => {
                let most = MOST_TOKENS / seq_len.max(1);
                wanted.saturating_mul(SPREAD_OVER).min(most).max(wanted)
            }
        }
    }

    /// Of so many that were read, those that are wanted; none for all.
    pub(super) fn chosen(self, n: usize, wanted: usize, seed: u64) -> Option<Vec<usize>> {
        (self == WindowSampling::Spread && wanted < n).then(|| spread(n, wanted, seed))
    }
}

/// One of each of `wanted` equal stretches, ascending.
fn spread(n: usize, wanted: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix::new(seed);
    let bound = |stretch: usize| stretch * n / wanted.max(1);
    let stretches = (0..wanted).map(|stretch| bound(stretch)..bound(stretch + 1));
    stretches
        .map(|stretch| stretch.start + random.below(stretch.len()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_window_of_each_stretch() {
        for (n, wanted) in [(1000, 64), (65, 64), (64, 64), (7, 1)] {
            let chosen = spread(n, wanted, 3);
            assert_eq!(chosen.len(), wanted);
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(
                chosen.iter().enumerate().all(|(i, &window)| {
                    (i * n / wanted..(i + 1) * n / wanted).contains(&window)
                })
            );
        }
        assert_ne!(spread(1000, 64, 3), spread(1000, 64, 4));
    }
}
