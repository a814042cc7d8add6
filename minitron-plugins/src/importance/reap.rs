use minitron_core::calibrate::{Observation, Site};
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::mixers::EXPERT_GATES;
use minitron_core::spec::{EXPERTS, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::add_sums;

/// What an expert adds to the tokens that go through it, over all calibration tokens, in f64:
///
/// ```text
/// mean       1/N_j · Σ g_j(x) · ‖E_j(x)‖₂         N_j tokens of expert j, g its weight
/// sum        Σ g_j(x) · ‖E_j(x)‖₂
/// frequency  N_j
/// ```
/// An expert that no token goes through has 0 and goes first. The mean is that of REAP (arXiv
/// 2510.13999, equation 7) and of NVIDIA's Model Optimizer; weights are those after
/// renormalisation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reap {
    /// What of it counts.
    pub of: ReapTerm,
}

/// What counts of what experts add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReapTerm {
    /// A token's, on average.
    #[default]
    Mean,
    /// All tokens' together.
    Sum,
    /// How many tokens there are.
    Frequency,
}

minitron_core::plugin! {
    Importance for Reap {
        tag: "reap",
        summary: "what an expert adds to a token that goes through it",
        source: "arXiv 2510.13999",
    }
}

#[typetag::serde(name = "reap")]
impl Importance for Reap {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        (group.kind() == EXPERTS).then(|| Need::Sites(self.sites(group)))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(Box::new(ReapScorer {
            of: self.of,
            n_experts: group.n_units,
            sums: vec![0.0; 2 * group.n_units],
        }))
    }
}

impl Reap {
    fn sites(&self, group: &PruneGroup) -> Vec<Site> {
        let mut sites = group.sites.clone();
        for site in &mut sites {
            if let (Site::Inside { port, .. }, ReapTerm::Frequency) = (site, self.of) {
                *port = EXPERT_GATES;
            }
        }
        sites
    }
}

#[derive(Debug)]
struct ReapScorer {
    of: ReapTerm,
    n_experts: usize,
    /// What each expert adds; then its tokens.
    sums: Vec<f64>,
}

impl Scorer for ReapScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let x_btx = observation.activations()?.x_btc;
        let x_nx = x_btx.f_reshape([-1, self.n_experts as i64])?;
        let sizes = over_tokens(&x_nx)?;
        let tokens = over_tokens(&x_nx.f_ne(0.0)?)?;
        add_sums(&mut self.sums, &[sizes, tokens].concat())
    }

    fn state(&self) -> Vec<f64> {
        self.sums.clone()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        add_sums(&mut self.sums, state)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let (sizes, tokens) = self.sums.split_at(self.n_experts);
        let of_expert = |(size, tokens): (&f64, &f64)| match self.of {
            ReapTerm::Mean => size / tokens.max(1.0),
            ReapTerm::Sum => *size,
            ReapTerm::Frequency => *tokens,
        };
        let scores = sizes.iter().zip(tokens).map(of_expert);
        Ok(scores.map(|score| score as f32).collect())
    }
}

fn over_tokens(x_nx: &Tensor) -> Result<Vec<f64>> {
    let sums = x_nx.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
    Ok(Vec::<f64>::try_from(&sums.f_to_device(Device::Cpu)?)?)
}
