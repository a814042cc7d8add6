use std::path::PathBuf;
use std::sync::Arc;

use minitron_core::calibrate::{Observation, Site};
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::{Error, Result};
use minitron_core::spec::PruneGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{IValue, Kind, Tensor};

use super::activation::sites;
use crate::script::Script;

/// A metric written in PyTorch, of activations at the places that `activation` reads: a module that
/// `torch.jit.script` saved, with two exported methods. `observe(x_btc, block) -> sums_su` makes of
/// a batch [B, T, C] (C = U · block channels) any number S of statistics per unit, which are added
/// up in f64 over batches; `finish(sums_su) -> scores_u` makes scores of the sums. A group that is
/// read at several places scores the sum over them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Torchscript {
    /// The file.
    pub path: PathBuf,
    #[serde(skip)]
    script: Arc<Script>,
}

minitron_core::plugin! {
    Importance for Torchscript {
        tag: "torchscript",
        summary: "a metric of activations from a TorchScript file",
        source: "the file's author",
    }
}

#[typetag::serde(name = "torchscript")]
impl Importance for Torchscript {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        let sites = sites(group, false);
        (!sites.is_empty()).then_some(Need::Sites(sites))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        let sites = sites(group, false);
        let sums = vec![Vec::new(); sites.len()];
        Ok(Box::new(ScriptedScorer {
            metric: self.clone(),
            block: group.block,
            n_units: group.n_units,
            sites,
            sums,
        }))
    }
}

#[derive(Debug)]
struct ScriptedScorer {
    metric: Torchscript,
    block: usize,
    n_units: usize,
    sites: Vec<Site>,
    /// By site, statistic after statistic, unit after unit; empty where nothing was seen yet.
    sums: Vec<Vec<f64>>,
}

impl ScriptedScorer {
    fn call(&self, method: &str, arguments: &[IValue]) -> Result<Tensor> {
        self.metric
            .script
            .call(&self.metric.path, method, arguments)
    }

    fn error(&self, message: String) -> Error {
        Error::Data(format!("{}: {message}", self.metric.path.display()))
    }

    fn scores_of(&self, sums: &[f64]) -> Result<Vec<f64>> {
        let sums_su = Tensor::f_from_slice(sums)?.f_view([-1, self.n_units as i64])?;
        let scores_u = self.call("finish", &[IValue::Tensor(sums_su)])?;
        if scores_u.size() != [self.n_units as i64] {
            let message = format!(
                "`finish`: expected [{}] scores, got {:?}",
                self.n_units,
                scores_u.size()
            );
            return Err(self.error(message));
        }
        Ok(Vec::<f64>::try_from(scores_u.f_to_kind(Kind::Double)?)?)
    }
}

impl Scorer for ScriptedScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let seen = observation.activations()?;
        let x = IValue::Tensor(seen.x_btc.shallow_clone());
        let block = IValue::Int(self.block as i64);
        let sums_su = tch::no_grad(|| self.call("observe", &[x, block]))?;
        if sums_su.dim() != 2 || sums_su.size().last() != Some(&(self.n_units as i64)) {
            let message = format!(
                "`observe`: expected sums [S, {}], got {:?}",
                self.n_units,
                sums_su.size()
            );
            return Err(self.error(message));
        }
        let added = Vec::<f64>::try_from(sums_su.f_to_kind(Kind::Double)?.f_reshape([-1])?)?;
        let Some(place) = self.sites.iter().position(|site| *site == seen.site) else {
            return Err(Error::Internal(format!(
                "a scorer was shown {:?}, which it did not ask for",
                seen.site
            )));
        };
        match self.sums.get_mut(place) {
            Some(sums) if sums.is_empty() => *sums = added,
            Some(sums) => super::add_sums(sums, &added)?,
            None => {}
        }
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        if self.sums.iter().all(Vec::is_empty) {
            return Vec::new();
        }
        self.sums
            .iter()
            .flat_map(|sums| std::iter::once(sums.len() as f64).chain(sums.iter().copied()))
            .collect()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        if state.is_empty() {
            return Ok(());
        }
        let mut rest = state;
        for sums in &mut self.sums {
            let (&len, after) = rest.split_first().ok_or_else(foreign)?;
            // Lengths were written from lengths; anything else is no state of ours.
            let len = if (0.0..=after.len() as f64).contains(&len) {
                len as usize
            } else {
                return Err(foreign());
            };
            let (theirs, after) = after.split_at_checked(len).ok_or_else(foreign)?;
            match sums.is_empty() {
                true => *sums = theirs.to_vec(),
                false if theirs.is_empty() => {}
                false => super::add_sums(sums, theirs)?,
            }
            rest = after;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(foreign())
        }
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let mut scores_u = vec![0.0; self.n_units];
        for sums in self.sums.iter().filter(|sums| !sums.is_empty()) {
            let values = self.scores_of(sums)?;
            scores_u
                .iter_mut()
                .zip(values)
                .for_each(|(score, value)| *score += value);
        }
        Ok(scores_u.into_iter().map(|score| score as f32).collect())
    }
}

fn foreign() -> Error {
    Error::Internal("a scorer's state of another metric".into())
}
