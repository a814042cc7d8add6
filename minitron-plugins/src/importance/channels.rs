//! Activations of channels beside the weights that read them: what Wanda- and FLAP-like metrics
//! share.

use minitron_core::calibrate::{Observation, Site};
use minitron_core::contract::{Need, Scorer};
use minitron_core::error::{Present, Result};
use minitron_core::spec::{EXPERTS, PruneGroup};
use tch::{Kind, Tensor};

use super::activation::sites;
use super::{add_sums, check_len};

/// One channel over all tokens that were seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Channel {
    /// Tokens.
    pub n: f64,
    /// Σ x
    pub sum: f64,
    /// Σ x²
    pub sum_squares: f64,
    /// What was taken of the weights that read it, summed over the rows of the projection.
    pub weight: f64,
}

/// Neurons and heads, whose channels one projection reads; of whole experts none does.
pub(super) fn need(group: &PruneGroup) -> Option<Need> {
    // Residual channels are read in every layer, each time by several projections.
    let is_read_once = group.layer.is_some() && group.kind() != EXPERTS;
    let sites: Vec<Site> = if is_read_once {
        sites(group, false)
    } else {
        Vec::new()
    };
    (!sites.is_empty()).then_some(Need::SitesAndWeights(sites))
}

/// A unit's score is the sum over its channels of `value`.
#[derive(Debug)]
pub(super) struct ChannelScorer {
    /// Of one weight.
    term: fn(&Tensor) -> Result<Tensor>,
    value: fn(Channel) -> f64,
    block: usize,
    n_tokens: f64,
    /// Σ x of each channel, then Σ x².
    sums: Vec<f64>,
    /// By channel; zeros before the weights were seen.
    weights: Vec<f64>,
}

impl ChannelScorer {
    pub fn boxed(
        group: &PruneGroup,
        term: fn(&Tensor) -> Result<Tensor>,
        value: fn(Channel) -> f64,
    ) -> Box<dyn Scorer> {
        let n_channels = group.n_units * group.block;
        let (sums, weights) = (vec![0.0; 2 * n_channels], vec![0.0; n_channels]);
        Box::new(ChannelScorer {
            term,
            value,
            block: group.block,
            n_tokens: 0.0,
            sums,
            weights,
        })
    }
}

impl Scorer for ChannelScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        if let Observation::Weights(seen) = observation {
            if !seen.reads {
                return Ok(());
            }
            let (n_units, block) = (seen.units.len() as i64, self.block as i64);
            let term_urk = (self.term)(&seen.weight_ui.f_reshape([n_units, -1, block])?)?;
            let of_channels = term_urk.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
            let channels = seen.units.start * self.block..seen.units.end * self.block;
            let weights = self
                .weights
                .get_mut(channels)
                .present("the channels of a weight")?;
            return add_sums(
                weights,
                &Vec::<f64>::try_from(of_channels.f_reshape([-1])?)?,
            );
        }
        let x_btc = observation.activations()?.x_btc;
        let x_nc = x_btc
            .f_reshape([
                -1,
                x_btc
                    .size()
                    .last()
                    .copied()
                    .present("channels of activations")?,
            ])?
            .f_to_kind(Kind::Double)?;
        let sum_c = x_nc.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
        let squares_c =
            x_nc.f_square()?
                .f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
        self.n_tokens += x_nc.size2()?.0 as f64;
        add_sums(
            &mut self.sums,
            &Vec::<f64>::try_from(Tensor::f_cat(&[sum_c, squares_c], 0)?)?,
        )
    }

    fn state(&self) -> Vec<f64> {
        [&[self.n_tokens], self.sums.as_slice(), &self.weights].concat()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        check_len(state, 1 + self.sums.len() + self.weights.len())?;
        let (n_tokens, rest) = state.split_at(1);
        let (sums, weights) = rest.split_at(self.sums.len());
        self.n_tokens += n_tokens.first().copied().unwrap_or(0.0);
        if self.weights.iter().all(|&weight| weight == 0.0) {
            self.weights = weights.to_vec();
        }
        add_sums(&mut self.sums, sums)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let (sums, squares) = self.sums.split_at(self.weights.len());
        let channels = sums.iter().zip(squares).zip(&self.weights);
        let values: Vec<f64> = channels
            .map(|((&sum, &sum_squares), &weight)| {
                (self.value)(Channel {
                    n: self.n_tokens,
                    sum,
                    sum_squares,
                    weight,
                })
            })
            .collect();
        Ok(values
            .chunks(self.block.max(1))
            .map(|of_unit| of_unit.iter().sum::<f64>() as f32)
            .collect())
    }
}
