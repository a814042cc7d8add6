//! Which windows of a text are looked at, where it holds more than are wanted.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::loader::BLOCK_TOKENS;
use super::spec::Reading;
use minitron_core::error::{Error, Result};
use minitron_core::random::SplitMix;
use minitron_core::windows::Windows;

/// So many times the windows that are wanted are read, where they are spread.
const SPREAD_OVER: usize = 32;

/// Which windows of a text are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// The first ones.
    #[default]
    First,
    /// One at random from each of as many equal stretches of the text's first 32 times as many
    /// windows, or of as many as make 16M tokens: neighbours are of one kind, and what is fitted to
    /// one document fits others less.
    Spread,
}

impl FromStr for Sampling {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "first" => Ok(Sampling::First),
            "spread" => Ok(Sampling::Spread),
            other => Err(Error::unknown("sampling", other, ["first", "spread"])),
        }
    }
}

impl Reading {
    /// With windows taken so.
    pub fn sampled(self, sampling: Sampling) -> Self {
        Reading { sampling, ..self }
    }

    /// Windows that are read; none for all there are.
    pub(super) fn n_read(&self) -> Option<usize> {
        let wanted = self.max_windows?;
        Some(match self.sampling {
            Sampling::First => wanted,
            Sampling::Spread => {
                let of_block = BLOCK_TOKENS / self.seq_len.max(1);
                wanted.saturating_mul(SPREAD_OVER).min(of_block).max(wanted)
            }
        })
    }

    /// Of those that were read, those that are wanted.
    pub(super) fn chosen(&self, windows: Windows) -> Result<Windows> {
        match (self.sampling, self.max_windows) {
            (Sampling::Spread, Some(wanted)) if wanted < windows.len() => {
                windows.chosen(&spread(windows.len(), wanted, self.seed))
            }
            _ => Ok(windows),
        }
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
