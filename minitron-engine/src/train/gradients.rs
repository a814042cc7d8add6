//! An optimiser's gradients one by one, for whoever sums them over ranks.

use tch::{Kind, Tensor};

use super::optimizer::{AdamW, State};
use minitron_core::error::{Present, Result};

impl AdamW {
    /// Places of the parameters by when a step's backward pass has their gradients whole: those of
    /// each of the student's layers, from the last to the first, then its others, then each other
    /// group's. Beside them the number of layers.
    pub(super) fn units(&self) -> (Vec<Vec<usize>>, usize) {
        let layers = self.states.iter().filter_map(|state| state.layer_in(0));
        let n_layers = layers.max().map_or(0, |last| last + 1);
        let mut units = vec![Vec::new(); n_layers + self.n_groups()];
        let here = |(_, state): &(usize, &State)| !state.is_apart();
        for (idx, state) in self.states.iter().enumerate().filter(here) {
            let unit = match state.layer_in(0) {
                Some(layer) => n_layers - 1 - layer,
                None => n_layers + state.group,
            };
            if let Some(unit) = units.get_mut(unit) {
                unit.push(idx);
            }
        }
        (units, n_layers)
    }

    /// Bytes of all gradients.
    pub(super) fn n_bytes(&self) -> usize {
        let here = self.states.iter().filter(|state| !state.is_apart());
        here.map(|state| &state.weight)
            .map(|weight| weight.numel() * weight.kind().elt_size_in_bytes())
            .sum()
    }

    /// All gradients as they are, those not there undefined.
    pub(super) fn gradients(&self) -> Result<Vec<Tensor>> {
        let gradients = self.states.iter().map(|state| state.weight.f_grad());
        Ok(gradients.collect::<std::result::Result<_, _>>()?)
    }

    /// One of them, where there is one.
    pub(super) fn gradient(&self, idx: usize) -> Result<Option<Tensor>> {
        let state = self.states.get(idx).present("a parameter")?;
        let gradient = state.weight.f_grad()?;
        Ok(match gradient.defined() {
            true => Some(gradient.f_detach()?),
            false => None,
        })
    }

    /// What is sent where there is none.
    pub(super) fn no_gradient(&self, idx: usize) -> Result<Tensor> {
        let state = self.states.get(idx).present("a parameter")?;
        let options = (state.weight.f_kind()?, state.weight.device());
        Ok(Tensor::f_zeros(state.weight.size(), options)?)
    }

    /// Replaces one, or begins it.
    pub(super) fn set_gradient(&self, idx: usize, to: &Tensor) -> Result<()> {
        let weight = &self.states.get(idx).present("a parameter")?.weight;
        if !weight.f_grad()?.defined() {
            // The gradient of zero times it.
            let nothing = weight.f_mul_scalar(0.0)?.f_sum(Kind::Float)?;
            nothing.f_backward()?;
        }
        let _no_grad = tch::no_grad_guard();
        weight.f_grad()?.f_copy_(to)?;
        Ok(())
    }
}
