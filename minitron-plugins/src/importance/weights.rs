//! Sums over the weights of coupled groups: what metrics of weights and of gradients share.

use minitron_core::calibrate::{Observation, Weights};
use minitron_core::contract::Scorer;
use minitron_core::error::{Present, Result};
use minitron_core::spec::PruneGroup;
use tch::{Kind, Tensor};

use super::add_sums;

/// Something of every weight [U, I], summed per unit in f64 over all tensors of its group.
#[derive(Debug)]
pub(super) struct WeightScorer {
    terms: fn(&Weights) -> Result<Tensor>,
    /// From a unit's sum to its score.
    value: fn(f64) -> f64,
    sums: Vec<f64>,
}

impl WeightScorer {
    pub fn boxed(
        group: &PruneGroup,
        terms: fn(&Weights) -> Result<Tensor>,
        value: fn(f64) -> f64,
    ) -> Box<dyn Scorer> {
        Box::new(WeightScorer {
            terms,
            value,
            sums: vec![0.0; group.n_units],
        })
    }
}

impl Scorer for WeightScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let seen = observation.weights()?;
        let of_units =
            (self.terms)(seen)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
        let sums_u = self
            .sums
            .get_mut(seen.units.clone())
            .present("the units of a weight")?;
        sums_u
            .iter_mut()
            .zip(Vec::<f64>::try_from(&of_units)?)
            .for_each(|(sum, value)| *sum += value);
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        self.sums.clone()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        add_sums(&mut self.sums, state)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        Ok(self
            .sums
            .iter()
            .map(|&sum| (self.value)(sum) as f32)
            .collect())
    }
}
