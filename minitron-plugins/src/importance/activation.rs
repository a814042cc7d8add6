use minitron_core::calibrate::{Observation, SequenceStat, Site};
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::{Error, Result};
use minitron_core::model::Port;
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check_len;

/// Size of a unit's activations over the calibration windows (arXiv 2407.14679, section 2.2).
///
/// Per token: |activation| of a neuron (the input of the second projection, or with `site=pre` the
/// pre-activation), the L2 norm over `head_dim` of a head's output (of a key/value head: over all
/// its queries'), and a residual channel as attention and the MLP read it. `seq` reduces the tokens
/// of each window, `batch` the windows; a residual channel's score is the sum over all its norms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Activation {
    /// Over windows.
    pub batch: SequenceStat,
    /// Over the tokens of a window.
    pub seq: SequenceStat,
    /// Where neurons are read.
    pub site: NeuronSite,
}

/// Where neurons are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NeuronSite {
    /// Input of the MLP's second projection: act(gate)·up where there is a gate.
    Post,
    /// The activated projection before its non-linearity.
    Pre,
}

impl Default for Activation {
    fn default() -> Self {
        Activation {
            batch: SequenceStat::L2,
            seq: SequenceStat::Mean,
            site: NeuronSite::Post,
        }
    }
}

minitron_core::plugin! {
    Importance for Activation {
        tag: "activation",
        summary: "size of activations of neurons, heads and residual channels",
        source: "arXiv 2407.14679, section 2.2",
    }
}

#[typetag::serde(name = "activation")]
impl Importance for Activation {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        let sites = sites(group, self.site == NeuronSite::Pre);
        (!sites.is_empty()).then_some(Need::Sites(sites))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        let sites = sites(group, self.site == NeuronSite::Pre);
        let n_moments = sites.len() * group.n_units;
        let moments = vec![Moments::default(); n_moments];
        Ok(Box::new(ActivationScorer {
            metric: self.clone(),
            block: group.block,
            n_units: group.n_units,
            sites,
            moments,
        }))
    }
}

/// Where the units of a group are read; nowhere where activations say nothing of them.
pub(super) fn sites(group: &PruneGroup, before_activation: bool) -> Vec<Site> {
    let mut sites = group.sites.clone();
    for site in &mut sites {
        if let Site::Inside { port, .. } = site
            && *port == Port::NEURONS
            && before_activation
        {
            *port = Port::PRE_ACTIVATION;
        }
    }
    sites
}

#[derive(Debug)]
struct ActivationScorer {
    metric: Activation,
    block: usize,
    n_units: usize,
    sites: Vec<Site>,
    /// Over windows, site after site, unit after unit.
    moments: Vec<Moments>,
}

impl Scorer for ActivationScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let seen = observation.activations()?;
        let stat_bu = seen.per_window(self.metric.seq, self.block)?;
        let place = self.sites.iter().position(|site| *site == seen.site);
        let mut by_site = self.moments.chunks_mut(self.n_units.max(1));
        let Some(moments_u) = place.and_then(|place| by_site.nth(place)) else {
            return Err(Error::Internal(format!(
                "a scorer was shown {:?}, which it did not ask for",
                seen.site
            )));
        };
        for stat_u in stat_bu.chunks(self.n_units.max(1)) {
            for (moment, &value) in moments_u.iter_mut().zip(stat_u) {
                moment.add(value);
            }
        }
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        self.moments
            .iter()
            .flat_map(|m| [m.n, m.mean, m.m2, m.sum_abs, m.sum_squares])
            .collect()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        check_len(state, 5 * self.moments.len())?;
        for (ours, theirs) in self.moments.iter_mut().zip(state.chunks_exact(5)) {
            if let [n, mean, m2, sum_abs, sum_squares] = *theirs {
                ours.merge(&Moments {
                    n,
                    mean,
                    m2,
                    sum_abs,
                    sum_squares,
                });
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let mut scores_u = vec![0.0; self.n_units];
        for moments_u in self.moments.chunks(self.n_units.max(1)) {
            for (score, moment) in scores_u.iter_mut().zip(moments_u) {
                *score += moment.reduce(self.metric.batch);
            }
        }
        Ok(scores_u.into_iter().map(|score| score as f32).collect())
    }
}

/// What all three reductions over windows need, in f64: the order of windows does not show in f32.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    n: f64,
    mean: f64,
    /// Sum of squared deviations from the mean.
    m2: f64,
    sum_abs: f64,
    sum_squares: f64,
}

impl Moments {
    fn add(&mut self, x: f64) {
        self.n += 1.0;
        let delta = x - self.mean;
        self.mean += delta / self.n;
        self.m2 += delta * (x - self.mean);
        self.sum_abs += x.abs();
        self.sum_squares += x * x;
    }

    /// Chan, Golub & LeVeque's pairwise update. One window is added as if it were seen here, and
    /// what is merged into nothing stays as it is: to the last bit.
    fn merge(&mut self, other: &Moments) {
        let n = self.n + other.n;
        if self.n == 0.0 || other.n == 0.0 {
            if self.n == 0.0 {
                *self = *other;
            }
            return;
        }
        if other.n == 1.0 {
            return self.add(other.mean);
        }
        let delta = other.mean - self.mean;
        self.mean += delta * other.n / n;
        self.m2 += other.m2 + delta * delta * self.n * other.n / n;
        self.n = n;
        self.sum_abs += other.sum_abs;
        self.sum_squares += other.sum_squares;
    }

    fn reduce(&self, stat: SequenceStat) -> f64 {
        match stat {
            SequenceStat::Mean => self.sum_abs / self.n.max(1.0),
            SequenceStat::L2 => self.sum_squares.sqrt(),
            SequenceStat::Var => self.m2 / self.n.max(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_halves_are_the_whole() {
        let values = [0.5, -3.0, 2.0, 7.5, 0.0, 1.25];
        let of = |values: &[f64]| {
            let mut moments = Moments::default();
            values.iter().for_each(|&x| moments.add(x));
            moments
        };
        let (mut left, whole) = (of(&values[..2]), of(&values));
        left.merge(&of(&values[2..]));
        for stat in [SequenceStat::Mean, SequenceStat::L2, SequenceStat::Var] {
            assert!((left.reduce(stat) - whole.reduce(stat)).abs() < 1e-12);
        }
        let mean = values.iter().sum::<f64>() / 6.0;
        let var = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 6.0;
        assert!((whole.reduce(SequenceStat::Var) - var).abs() < 1e-12);
    }
}
