//! Which source the next window comes from.

/// Shares of sources: after any number of windows, each has given its share to within one window.
#[derive(Debug)]
pub(super) struct Mixture {
    shares: Vec<f64>,
}

/// Sums of shares may miss a whole number by rounding.
const ROUNDING: f64 = 1e-9;

impl Mixture {
    /// From weights, which need not sum to one.
    pub fn new(weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        Mixture {
            shares: weights.iter().map(|weight| weight / sum).collect(),
        }
    }

    /// The source of the next window when each has given `taken`: of those that would not exceed
    /// their share, the one whose share will be missed first. This keeps each within one (Balinski
    /// and Young 1975, the quota method), which taking the largest deficit does not for more than
    /// two sources.
    pub fn pick(&self, taken: &[u64]) -> usize {
        let next = taken.iter().sum::<u64>() as f64 + 1.0;
        let (mut first, mut earliest) = (0, f64::INFINITY);
        for (idx, (&share, &taken)) in self.shares.iter().zip(taken).enumerate() {
            let has_room = taken as f64 + ROUNDING < share * next;
            let deadline = (taken as f64 + 1.0) / share;
            if has_room && deadline < earliest {
                (first, earliest) = (idx, deadline);
            }
        }
        first
    }

    /// The mean of a number of each source, weighted by the shares.
    pub fn average(&self, numbers: impl Iterator<Item = f64>) -> f64 {
        self.shares
            .iter()
            .zip(numbers)
            .map(|(share, number)| share * number)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minitron_core::random::SplitMix;

    #[test]
    fn shares_are_kept_to_within_one_window() {
        let mut random = SplitMix::new(1);
        for n_sources in 1..9 {
            for _ in 0..20 {
                let weights: Vec<f64> = (0..n_sources)
                    .map(|_| random.unit().powi(4) + 1e-6)
                    .collect();
                let mixture = Mixture::new(&weights);
                let mut taken = vec![0u64; n_sources];
                for n in 1..=500u64 {
                    let idx = mixture.pick(&taken);
                    taken[idx] += 1;
                    for (&taken, share) in taken.iter().zip(&mixture.shares) {
                        assert!(
                            (taken as f64 - share * n as f64).abs() < 1.0 + 1e-6,
                            "{weights:?} after {n}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn seven_and_three_tenths_alternate_evenly() {
        let mixture = Mixture::new(&[0.7, 0.3]);
        let mut taken = [0, 0];
        let mut picked = Vec::new();
        for _ in 0..20 {
            let idx = mixture.pick(&taken);
            taken[idx] += 1;
            picked.push(idx);
        }
        assert_eq!(taken, [14, 6]);
        assert_eq!(picked[..10], picked[10..]);
    }
}
