use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::digest;
use minitron_core::error::{Present, Result};
use minitron_core::random::SplitMix;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check_len;

/// Scores uniform in [0, 1), a function of `seed` and the dim's name alone: what any other metric
/// must beat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Random {
    /// Another seed, other scores.
    pub seed: u64,
}

minitron_core::plugin! {
    Importance for Random {
        tag: "random",
        summary: "seeded random scores, the baseline",
        source: "arXiv 2407.14679, section 4 (baselines)",
    }
}

#[typetag::serde(name = "random")]
impl Importance for Random {
    fn need(&self, _group: &PruneGroup) -> Option<Need> {
        Some(Need::Sites(Vec::new()))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        let digest = digest::of_text(&format!("{}/{}", self.seed, group.dim));
        let seed = u64::from_str_radix(digest.get(..16).present("half of a digest")?, 16)
            .unwrap_or(self.seed);
        Ok(Box::new(RandomScorer {
            seed,
            n_units: group.n_units,
        }))
    }
}

#[derive(Debug)]
struct RandomScorer {
    seed: u64,
    n_units: usize,
}

impl Scorer for RandomScorer {
    fn observe(&mut self, _observation: &Observation) -> Result<()> {
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        check_len(state, 0)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let mut random = SplitMix::new(self.seed);
        Ok((0..self.n_units).map(|_| random.unit() as f32).collect())
    }
}
