//! The order in which training visits windows.

use minitron_core::error::{Present, Result};
use minitron_core::random::SplitMix;

/// Epoch after epoch, each a permutation of all windows that follows from the seed and the epoch
/// alone, so that a position in it is all that a resumed run needs.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// An order over `n_windows` windows.
    pub fn new(n_windows: usize, seed: u64) -> Self {
        let mut order = Order {
            seed,
            epoch: 0,
            permutation: (0..n_windows).collect(),
        };
        order.shuffle();
        order
    }

    fn shuffle(&mut self) {
        self.permutation.sort_unstable();
        shuffle(&mut self.permutation, self.seed, self.epoch, (0, 0));
    }

    /// The window at a position counted from the start of training.
    pub fn at(&mut self, position: u64) -> Result<usize> {
        let n = self.permutation.len().max(1) as u64;
        if position / n != self.epoch {
            self.epoch = position / n;
            self.shuffle();
        }
        self.permutation
            .get((position % n) as usize)
            .copied()
            .present("a window at every position")
    }
}

/// Shuffles a block of a source: a function of seed, epoch, source and block alone. The first block
/// of the first source is shuffled as [`Order`] shuffles an epoch.
pub(super) fn shuffle<T>(items: &mut [T], seed: u64, epoch: u64, (source, block): (usize, u64)) {
    // Hashed apart: seeds that differ by a multiple of the generator's own step would give shifted
    // streams.
    let mut mixed = SplitMix::new(seed).bits() ^ SplitMix::new(!epoch).bits();
    if (source, block) != (0, 0) {
        mixed ^= SplitMix::new(SplitMix::new(source as u64).bits() ^ block).bits();
    }
    let mut random = SplitMix::new(mixed);
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_window_once_and_any_position_can_be_entered() {
        let mut order = Order::new(10, 7);
        let two_epochs: Vec<usize> = (0..20)
            .map(|position| order.at(position).unwrap())
            .collect();
        for epoch in two_epochs.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(two_epochs[..10], two_epochs[10..]);
        assert_eq!(Order::new(10, 7).at(13).unwrap(), two_epochs[13]);
    }

    #[test]
    fn epochs_are_shuffled_independently() {
        let n = 1000;
        let mut order = Order::new(n, 0);
        let positions: Vec<usize> = (0..2 * n as u64)
            .map(|position| order.at(position).unwrap())
            .collect();
        for shift in 0..3 {
            let alike = |i: &usize| positions[*i].abs_diff(positions[n + (*i + shift) % n]) <= 1;
            assert!(
                (0..n).filter(alike).count() < 20,
                "epochs follow each other at a distance of {shift}"
            );
        }
    }
}
