//! The forward pass of a calibration with one layer in memory: batches wait in a folder between
//! layers.

use tracing::info_span;

use super::forward::{BatchState, ForwardPlan};
use super::pass::{Adding, Calibrating, Pass, own_batches};
use super::scorers::ScorerSet;
use super::streamed::{Reached, Streamed};
use crate::ranks::Ranks;
use minitron_core::calibrate::Calibration;
use minitron_core::error::{Error, Result};
use minitron_core::model::{BatchStore, LayerStore};

/// Batches that wait in a folder; each layer that all of them have passed is a place to go on from.
struct Waiting<'a> {
    model: &'a Streamed<'a>,
    forward: &'a ForwardPlan,
    done: Reached,
    shapes: Vec<[i64; 3]>,
    ranks: Ranks,
}

impl BatchStore<Calibrating<'_>> for Waiting<'_> {
    fn begin(&self) -> Option<usize> {
        self.done.layer
    }

    fn put(&mut self, layer_idx: usize, batch: usize, state: BatchState) -> Result<()> {
        self.model
            .activations
            .put(&self.done, layer_idx, batch, &state)
    }

    fn take(&mut self, layer_idx: usize, batch: usize) -> Result<BatchState> {
        let shape = self
            .shapes
            .get(batch)
            .ok_or_else(|| Error::Internal(format!("there is no batch {batch}")))?;
        self.model.activations.take(
            &self.done,
            layer_idx,
            batch,
            self.forward,
            shape,
            self.model.options,
        )
    }

    fn reached(&mut self, layer_idx: usize, walk: &Calibrating) -> Result<()> {
        let activations = self.model.activations;
        if let (Adding::Later(kept), Some(before)) = (&walk.pass.adding, layer_idx.checked_sub(1)) {
            activations.put_parts(self.done.forward, before, kept)?;
        }
        let reached = Reached {
            layer: Some(layer_idx),
            ..self.done
        };
        activations.commit(reached, &walk.scorers.state_to_keep(self.ranks))?;
        wait_for_all(self.ranks)
    }
}

impl ScorerSet {
    /// The same with one layer's weights and one batch's activations in memory; the other
    /// activations wait on disk, and an interrupted pass goes on at the layer it had reached. Each
    /// rank has a folder and a place of its own.
    pub fn stream(&mut self, model: &Streamed, input: &Calibration, ranks: Ranks) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let _span = info_span!(
            "calibrate",
            n_tokens = input.windows.n_tokens(),
            streamed = true
        )
        .entered();
        let (done, state) = model.activations.resume()?;
        self.merge(&state)?;
        let store = LayerStore::Stored {
            source: model.source,
            spec: model.spec,
            options: model.options,
        };
        let plans = ForwardPlan::all(self, model.spec, input.task)?;
        catch_up(ranks, done, model.spec.n_layers())?;
        for (number, forward) in plans.iter().enumerate().skip(done.forward) {
            let layer = done.layer.filter(|_| number == done.forward);
            let mut waiting = Waiting {
                model,
                forward,
                done: Reached {
                    forward: number,
                    layer,
                },
                shapes: shapes(model, input, ranks)?,
                ranks,
            };
            let frame = model.frame(input, forward)?;
            let pass = Pass {
                forward,
                input,
                ranks,
                adding: match ranks.has_others() {
                    true => Adding::Later(Vec::new()),
                    false => Adding::ByLayer,
                },
            };
            let kept = self.take(&store, &frame, pass, &mut waiting)?;
            if ranks.has_others() {
                let last = model.spec.n_layers();
                model.activations.put_parts(number, last, &kept)?;
            }
            let next = Reached {
                forward: number + 1,
                layer: None,
            };
            model.activations.commit(next, &self.state_to_keep(ranks))?;
            wait_for_all(ranks)?;
        }
        if ranks.has_others() {
            self.add_kept(model, input, (plans.len(), ranks))?;
        }
        model.activations.remove()
    }

    /// What an interrupted pass needs besides parts: several ranks add nothing before the end.
    fn state_to_keep(&self, ranks: Ranks) -> Vec<Vec<f64>> {
        match ranks.has_others() {
            true => Vec::new(),
            false => self.state(),
        }
    }

    /// Adds what all ranks kept of all layers, in the order in which one process sees it.
    fn add_kept(
        &mut self,
        model: &Streamed,
        input: &Calibration,
        (n_ways, ranks): (usize, Ranks),
    ) -> Result<()> {
        let n_rounds = input.batches().len().div_ceil(ranks.size());
        for way in 0..n_ways {
            for layer_idx in 0..=model.spec.n_layers() {
                let kept = model.activations.parts(way, layer_idx)?;
                for round in 0..n_rounds {
                    self.add_of_all(ranks, kept.get(round).map_or(&[], Vec::as_slice))?;
                }
            }
        }
        Ok(())
    }
}

/// No rank is further ahead than a layer: one that waited for hours at the end would give up.
fn wait_for_all(ranks: Ranks) -> Result<()> {
    ranks.any(false).map(drop)
}

/// Ranks that were interrupted at different places: those ahead wait, layer by layer.
fn catch_up(ranks: Ranks, done: Reached, n_layers: usize) -> Result<()> {
    // Each way waits before the first layer, after each, and at its end.
    let steps = done.forward * (n_layers + 2) + done.layer.map_or(0, |layer| layer + 1);
    let all = ranks.gather_numbers(&[steps as f64])?;
    let least = all.into_iter().flatten().fold(f64::INFINITY, f64::min);
    (least as usize..steps).try_for_each(|_| wait_for_all(ranks))
}

/// What each batch's states are: windows, tokens, embed.
fn shapes(model: &Streamed, input: &Calibration, ranks: Ranks) -> Result<Vec<[i64; 3]>> {
    let mut shapes = Vec::new();
    for batch in own_batches(input, ranks) {
        let width = input.windows.window(batch.start)?.len() as i64;
        shapes.push([batch.len() as i64, width, model.n_embed()]);
    }
    Ok(shapes)
}
