//! What an optimiser keeps, on its way out and back: masters, moments, weights.

use minitron_torch::read;
use tch::{Device, Tensor};

use super::optimizer::{AdamW, MasterWeights};
use super::shard::Divided;
use crate::ranks::Ranks;
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::error::{Error, Result};

impl AdamW {
    /// What a trained model is written from, where it computes in less than f32 or its layers are
    /// sharded: those whose names begin with `prefix`, without it. All ranks bring their parts;
    /// where there are parts, the first rank alone is given the masters.
    pub fn masters(&self, prefix: &str, ranks: Ranks) -> Result<MasterWeights> {
        let _no_grad = tch::no_grad_guard();
        let mut masters = MasterWeights::new();
        for state in &self.states {
            let Some(name) = state.name.strip_prefix(prefix) else {
                continue;
            };
            let own = match (&state.master, &state.apart) {
                (Some(master), _) => master.shallow_clone(),
                (None, Some(apart)) => apart.weight.shallow_clone(),
                (None, None) => continue,
            };
            let whole = if self.shard.is_whole() {
                own.f_view(state.weight.size().as_slice())?
            } else {
                let options = (own.f_kind()?, state.weight.device());
                let whole = Tensor::f_empty(state.weight.size(), options)?;
                let (into, cut) = (whole.shallow_clone(), state.cut);
                let divided = Divided {
                    whole: into,
                    own,
                    cut,
                };
                self.shard.unite(ranks, &[divided])?;
                // A device that has room for a part need not have it for all.
                whole.f_to_device(Device::Cpu)?
            };
            if self.shard.is_whole() || ranks.is_first() {
                masters.insert(name.to_owned(), whole);
            }
        }
        Ok(masters)
    }

    /// The first weight or moment that is NaN or infinite; the host waits once.
    pub fn not_finite(&self) -> Result<Option<&str>> {
        let (mut ends, mut names) = (Vec::new(), Vec::new());
        for state in &self.states {
            let own = state.apart.as_ref().map_or(&state.weight, |it| &it.weight);
            let weight = state.master.as_ref().unwrap_or(own);
            let has_values = |tensor: &&Tensor| tensor.numel() > 0;
            for tensor in [weight, &state.m, &state.v].into_iter().filter(has_values) {
                // NaN is both; a copy of a large table, as a sum in f64 makes, would be the peak of
                // the run.
                let (least, most) = tensor.f_detach()?.f_aminmax(None::<i64>, false)?;
                ends.extend([least, most]);
                names.extend([&state.name; 2]);
            }
        }
        let mut read = read(&ends)?.into_iter().zip(names);
        let found = read.find(|(end, _)| !end.is_finite());
        Ok(found.map(|(_, name)| name.as_str()))
    }

    /// Moments, and masters where there are any.
    pub fn to_source(&self) -> Result<MemorySource> {
        let mut source = MemorySource::default();
        for state in &self.states {
            source.insert(format!("m/{}", state.name), &state.m)?;
            source.insert(format!("v/{}", state.name), &state.v)?;
            let weight = match &state.master {
                Some(master) => master.shallow_clone(),
                None => state.own()?,
            };
            source.insert(format!("w/{}", state.name), &weight)?;
        }
        Ok(source)
    }

    /// Takes moments, masters and weights back, as after `n_steps` updates of any number of ranks.
    ///
    /// # Errors
    /// `Recipe` when they belong to a model of other shapes.
    pub fn restore(&mut self, source: &dyn TensorSource, n_steps: u64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.n_steps = n_steps;
        for state in &mut self.states {
            let m = saved(source, &format!("m/{}", state.name), &state.weight)?;
            state.m.f_copy_(&state.cut.own(&m)?)?;
            let v = saved(source, &format!("v/{}", state.name), &state.weight)?;
            state.v.f_copy_(&state.cut.own(&v)?)?;
            let w = saved(source, &format!("w/{}", state.name), &state.weight)?;
            match &mut state.apart {
                Some(apart) => apart.weight.f_copy_(&state.cut.own(&w)?)?,
                None => state.weight.f_detach()?.f_copy_(&w)?,
            }
            if let Some(master) = &mut state.master {
                master.f_copy_(&state.cut.own(&w)?)?;
            }
        }
        Ok(())
    }
}

/// A tensor of a saved state, which must have the shape of the one that it is for; those that were
/// kept in parts come without one.
fn saved(source: &dyn TensorSource, name: &str, like: &Tensor) -> Result<Tensor> {
    let shape: Vec<usize> = like.size().iter().map(|&side| side as usize).collect();
    match source.info(name) {
        Some(info) if info.shape == shape || info.shape == [like.numel()] => {
            let saved = source.read(name)?.f_view(like.size().as_slice())?;
            Ok(saved.f_to_device(like.device())?)
        }
        _ => Err(Error::Recipe(format!(
            "resume: the saved state has no `{name}` of shape {shape:?}; it belongs to another \
             student"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::super::adamw::AdamWSettings;
    use super::*;
    use minitron_core::model::Parameter;

    #[test]
    fn a_weight_or_moment_that_is_not_finite_is_found() {
        let like = Tensor::ones([4, 3], (Kind::Float, tch::Device::Cpu));
        let parameter =
            Parameter::learned("w".into(), &like, tch::Device::Cpu, Kind::Float).unwrap();
        for x in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let optimizer = AdamW::new([&parameter], AdamWSettings::default()).unwrap();
            assert_eq!(optimizer.not_finite().unwrap(), None);
            for tensor in [&optimizer.states[0].v, &optimizer.states[0].weight.detach()] {
                let _ = tensor.get(1).get(2).fill_(x);
                assert_eq!(optimizer.not_finite().unwrap(), Some("w"));
                let _ = tensor.get(1).get(2).fill_(3e38);
                assert_eq!(optimizer.not_finite().unwrap(), None);
            }
        }
    }
}
