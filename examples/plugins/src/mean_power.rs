use minitron_core::calibrate::{Observation, SequenceStat};
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::{Error, Result};
use minitron_core::spec::{MLP, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The mean over windows of a neuron's mean |activation|.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MeanPower {
    /// Raises each window's mean before they are summed.
    pub power: f64,
}

impl Default for MeanPower {
    fn default() -> Self {
        MeanPower { power: 1.0 }
    }
}

minitron_core::plugin! {
    Importance for MeanPower {
        tag: "mean_power",
        summary: "mean |activation| of MLP neurons, to a power",
        source: "arXiv 2407.14679, section 2.2",
    }
}

#[typetag::serde(name = "mean_power")]
impl Importance for MeanPower {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        match (group.kind(), group.layer) {
            (MLP, Some(_)) => Some(Need::Sites(group.sites.clone())),
            // Groups that are not scored.
            _ => None,
        }
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(Box::new(Seen {
            power: self.power,
            block: group.block,
            sums_u: vec![0.0; group.n_units],
        }))
    }
}

#[derive(Debug)]
struct Seen {
    power: f64,
    block: usize,
    /// One sum per unit, in f64: the order of windows does not show.
    sums_u: Vec<f64>,
}

impl Scorer for Seen {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        // One number per window and unit; `x_btc` has the activations themselves.
        let stat_bu = observation
            .activations()?
            .per_window(SequenceStat::Mean, self.block)?;
        for stat_u in stat_bu.chunks(self.sums_u.len().max(1)) {
            for (sum, value) in self.sums_u.iter_mut().zip(stat_u) {
                *sum += value.powf(self.power);
            }
        }
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        self.sums_u.clone()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        if state.len() != self.sums_u.len() {
            return Err(Error::Internal(format!(
                "{} numbers for {} units",
                state.len(),
                self.sums_u.len()
            )));
        }
        self.sums_u
            .iter_mut()
            .zip(state)
            .for_each(|(ours, theirs)| *ours += theirs);
        Ok(())
    }

    fn finish(&self) -> Result<Vec<f32>> {
        Ok(self.sums_u.iter().map(|&sum| sum as f32).collect())
    }
}
