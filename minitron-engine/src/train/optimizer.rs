//! What an optimiser keeps of every parameter, and of which part of it.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::adamw::{AdamWSettings, Update, update_all};
use super::norms::GradientNorms;
use super::shard::{Cut, Divided, Shard};
use super::sharded::{Apart, ShardedLayers};
use crate::ranks::Ranks;
use minitron_core::error::Result;
use minitron_core::model::Parameter;

/// Weights in f32 by name, where the model computes in less.
pub type MasterWeights = BTreeMap<String, Tensor>;

/// Moments and masters, f32 whatever the model computes in.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    pub(super) n_steps: u64,
    pub(super) states: Vec<State>,
    pub(super) shard: Shard,
    /// Each group's learning rate as a share of the one that a step is told.
    rates: Vec<f64>,
}

#[derive(Debug)]
pub(super) struct State {
    pub name: String,
    /// The model's own tensor.
    pub weight: Tensor,
    /// The rank's values of it and their gradient, where the model has them while it runs alone.
    pub apart: Option<Apart>,
    /// Which values the rank keeps.
    pub cut: Cut,
    /// The same in f32, where the model computes in less; of moments and masters there are the
    /// values of the rank's part alone.
    pub master: Option<Tensor>,
    pub m: Tensor,
    pub v: Tensor,
    decays: bool,
    pub group: usize,
    layer: Option<usize>,
}

impl State {
    /// The layer that it belongs to, of a group's model.
    pub fn layer_in(&self, group: usize) -> Option<usize> {
        self.layer.filter(|_| self.group == group)
    }

    /// Whether its gradient is summed elsewhere.
    pub fn is_apart(&self) -> bool {
        self.apart.is_some()
    }

    /// The rank's values.
    pub fn own(&self) -> Result<Tensor> {
        match &self.apart {
            Some(apart) => Ok(apart.weight.shallow_clone()),
            None => self.cut.own(&self.weight.f_detach()?),
        }
    }

    /// Their gradient, where there is one.
    fn own_gradient(&self) -> Result<Option<Tensor>> {
        if let Some(apart) = &self.apart {
            return Ok(Some(apart.gradient.shallow_clone()));
        }
        let gradient = self.weight.f_grad()?;
        match gradient.defined() {
            true => Ok(Some(self.cut.own(&gradient.f_detach()?.f_contiguous()?)?)),
            false => Ok(None),
        }
    }

    /// The gradient as it lies, or an undefined one.
    fn gradient(&self) -> Result<Tensor> {
        match &self.apart {
            Some(apart) => Ok(apart.gradient.shallow_clone()),
            None => Ok(self.weight.f_grad()?),
        }
    }

    /// Takes the gradient away.
    fn clear_gradient(&self) -> Result<()> {
        let mut gradient = self.gradient()?;
        if gradient.defined() {
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }
}

impl AdamW {
    /// Gives the moments back: no update follows.
    pub(super) fn forget_moments(&mut self) {
        for state in &mut self.states {
            (state.m, state.v) = (Tensor::new(), Tensor::new());
        }
    }

    /// Moments at zero for every parameter that takes gradients.
    pub fn new<'p>(
        parameters: impl IntoIterator<Item = &'p Parameter>,
        settings: AdamWSettings,
    ) -> Result<Self> {
        Self::divided(parameters, settings, (Shard::whole(), None))
    }

    /// The same of a rank's part of every parameter. All gradients are at hand on all ranks, each
    /// updates its part, and brings the parts together: the weights are those of one process, bit
    /// by bit. Those of sharded layers stay apart, and so do their gradients.
    pub fn divided<'p>(
        parameters: impl IntoIterator<Item = &'p Parameter>,
        settings: AdamWSettings,
        (shard, layers): (Shard, Option<&ShardedLayers>),
    ) -> Result<Self> {
        let mut optimizer = AdamW {
            settings,
            n_steps: 0,
            states: Vec::new(),
            shard,
            rates: Vec::new(),
        };
        optimizer.add_group("", parameters, (1.0, layers))?;
        Ok(optimizer)
    }

    /// Parameters of another model, whose gradients are measured and scaled apart and whose names
    /// begin with `prefix`.
    pub fn add_group<'p>(
        &mut self,
        prefix: &str,
        parameters: impl IntoIterator<Item = &'p Parameter>,
        (rate, layers): (f64, Option<&ShardedLayers>),
    ) -> Result<()> {
        let group = self.rates.len();
        self.rates.push(rate);
        for parameter in parameters {
            let weight = parameter.tensor.shallow_clone();
            let apart = match layers {
                Some(layers) => layers.apart(&parameter.name)?,
                None => None,
            };
            let (cut, own) = match &apart {
                Some(apart) => (apart.cut, apart.weight.shallow_clone()),
                None => {
                    let cut = self.shard.cut(&weight);
                    (cut, cut.own(&weight.f_detach()?)?)
                }
            };
            let master = match weight.f_kind()? {
                Kind::Float => None,
                _ => Some(own.f_to_kind(Kind::Float)?),
            };
            let (m, v) = (zeros_like(&own)?, zeros_like(&own)?);
            let name = format!("{prefix}{}", parameter.name);
            self.states.push(State {
                name,
                weight,
                apart,
                cut,
                master,
                m,
                v,
                decays: parameter.decays,
                group,
                layer: parameter.layer,
            });
        }
        Ok(())
    }

    /// L2 norms of the gradients of a group, scalars in f32 that lie where the gradients do.
    pub(super) fn gradient_norms(&self, group: usize) -> Result<GradientNorms> {
        let (mut whole, mut apart) = (Vec::new(), Vec::new());
        for state in self.states.iter().filter(|state| state.group == group) {
            if let Some(part) = &state.apart {
                apart.push(part.gradient.shallow_clone());
                continue;
            }
            let gradient = state.weight.f_grad()?;
            if gradient.defined() {
                whole.push(gradient.f_detach()?);
            }
        }
        GradientNorms::of(whole, apart, self.states.iter().any(State::is_apart))
    }

    /// One update from gradients times their group's scale; the gradients are cleared.
    pub fn step(&mut self, lr: f64, gradient_scales: &[f64], ranks: Ranks) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.n_steps += 1;
        let (updates, divided) = self.updates(lr, gradient_scales)?;
        update_all(&updates, self.settings, self.n_steps)?;
        match self.shard.is_whole() {
            true => Ok(()),
            false => self.shard.unite(ranks, &divided),
        }
    }

    /// What is to be changed, and by what: of every tensor that has a gradient. Beside it, which of
    /// them the ranks then bring together.
    fn updates(&self, lr: f64, gradient_scales: &[f64]) -> Result<(Vec<Update>, Vec<Divided>)> {
        let (mut updates, mut divided) = (Vec::new(), Vec::new());
        for state in &self.states {
            let Some(gradient) = state.own_gradient()? else {
                continue;
            };
            let own = state.own()?;
            updates.push(Update {
                own: own.shallow_clone(),
                own_gradient: gradient,
                gradient: state.gradient()?,
                master: state.master.as_ref().map(|master| master.shallow_clone()),
                m: state.m.shallow_clone(),
                v: state.v.shallow_clone(),
                decays: state.decays,
                lr: lr * self.rates.get(state.group).copied().unwrap_or(1.0),
                scale: gradient_scales.get(state.group).copied().unwrap_or(1.0),
            });
            if state.apart.is_none() {
                let (whole, cut) = (state.weight.f_detach()?, state.cut);
                divided.push(Divided { whole, own, cut });
            }
        }
        Ok((updates, divided))
    }

    /// Leaves weights and moments as they are, and takes the gradients away.
    pub fn skip(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.states.iter().try_for_each(State::clear_gradient)
    }

    /// Models whose parameters are measured and scaled apart.
    pub(super) fn n_groups(&self) -> usize {
        self.rates.len()
    }

    /// Which part of every tensor this keeps the state of.
    pub fn shard(&self) -> Shard {
        self.shard
    }
}

/// In f32, whatever a weight is in.
fn zeros_like(weight: &Tensor) -> Result<Tensor> {
    let options = (Kind::Float, weight.device());
    Ok(Tensor::f_zeros(weight.size(), options)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::adamw::update_fused;
    use minitron_core::model::Parameter;
    use minitron_torch::OpCounter;
    use tch::Device;

    /// Some parameters, of which one does not decay, with gradients.
    fn parameters(kind: Kind) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        for (name, shape) in [("a", vec![37, 11]), ("b", vec![300]), ("c", vec![5, 4])] {
            let n: i64 = shape.iter().product();
            let numbers = Tensor::arange(n, (Kind::Float, Device::Cpu)).view(shape.as_slice());
            let like = numbers.f_mul_scalar(1.7).unwrap().sin();
            let mut parameter = Parameter::learned(name.into(), &like, Device::Cpu, kind).unwrap();
            parameter.decays = name != "b";
            let pull = numbers.f_mul_scalar(0.3).unwrap().cos().to_kind(kind);
            parameter.tensor.f_mul(&pull).unwrap().sum(kind).backward();
            parameters.push(parameter);
        }
        parameters
    }

    /// On a GPU each call is a launch or more, and there are thousands of tensors.
    #[test]
    fn a_fused_update_is_a_few_calls_however_many_tensors_there_are() {
        let of = |n: usize| {
            let parameters: Vec<Parameter> =
                (0..n).flat_map(|_| parameters(Kind::BFloat16)).collect();
            let optimizer = AdamW::new(&parameters, AdamWSettings::default()).unwrap();
            let (updates, _) = optimizer.updates(1e-3, &[0.5]).unwrap();
            let updates: Vec<&Update> = updates.iter().collect();
            let counter = OpCounter::begin().unwrap();
            update_fused(&updates, optimizer.settings, 1).unwrap();
            counter.end().unwrap()
        };
        let (few, many) = (of(1), of(10));
        for (call, n) in [
            ("_fused_adamw_", 2),
            ("_foreach_copy_", 4),
            ("_foreach_zero_", 2),
        ] {
            let name = format!("aten::{call}");
            assert_eq!((few.of(&name), many.of(&name)), (n, n), "{call}");
        }
        // What is left for each tensor: views, its gradient's room in f32, and on a CPU its copies.
        let per_tensor = (many.n_calls() - few.n_calls()) / 27;
        assert!(per_tensor <= 12, "{per_tensor}: {many:?}");
    }

    /// The way of a GPU, whose kernels there are for the CPU too.
    #[test]
    fn the_fused_update_is_ours() {
        let ranks = Ranks::alone();
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-6)] {
            let [ours, theirs] = [(); 2].map(|()| parameters(kind));
            let settings = AdamWSettings::default();
            let mut by_blocks = AdamW::new(&ours, settings).unwrap();
            let mut by_lists = AdamW::new(&theirs, settings).unwrap();
            for (lr, scale) in [(1e-2, 1.0), (3e-3, 0.25)] {
                for (one, other) in ours.iter().zip(&theirs) {
                    let pull = one.tensor.detach().sin();
                    for parameter in [one, other] {
                        parameter.tensor.f_mul(&pull).unwrap().sum(kind).backward();
                    }
                }
                by_blocks.step(lr, &[scale], ranks).unwrap();
                by_lists.n_steps += 1;
                let (updates, _) = by_lists.updates(lr, &[scale]).unwrap();
                update_fused(
                    &updates.iter().collect::<Vec<_>>(),
                    settings,
                    by_lists.n_steps,
                )
                .unwrap();
            }
            for (one, other) in by_blocks.states.iter().zip(&by_lists.states) {
                let master = |state: &State| match &state.master {
                    Some(master) => master.shallow_clone(),
                    None => state.weight.detach(),
                };
                let pairs = [(master(one), master(other)), (one.m.copy(), other.m.copy())];
                for (ours, theirs) in pairs.into_iter().chain([(one.v.copy(), other.v.copy())]) {
                    let error = (&ours - &theirs).abs().max().double_value(&[]);
                    let size = ours.abs().max().double_value(&[]);
                    assert!(
                        error <= tolerance * size,
                        "{kind:?} {}: {error} of {size}",
                        one.name
                    );
                }
                assert!(other.weight.equal(&master(other).to_kind(kind)));
                assert_eq!(other.weight.grad().abs().max().double_value(&[]), 0.0);
            }
        }
    }
}
