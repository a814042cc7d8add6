//! The forward pass of a calibration with one layer in memory: batches wait in a folder between
//! layers.

use tracing::info_span;

use super::forward::{BatchState, Calibrating, ForwardPlan};
use super::scorers::ScorerSet;
use super::streamed::{Reached, Streamed};
use minitron_core::calibrate::Calibration;
use minitron_core::error::{Error, Result};
use minitron_core::model::{BatchStore, LayerStore};

/// Batches that wait in a folder; each layer that all of them have passed is a place to go on from.
struct Waiting<'a> {
    model: &'a Streamed<'a>,
    forward: &'a ForwardPlan,
    done: Reached,
    shapes: Vec<[i64; 3]>,
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
        self.model.activations.commit(
            Reached {
                layer: Some(layer_idx),
                ..self.done
            },
            &walk.scorers.state(),
        )
    }
}

impl ScorerSet {
    /// The same with one layer's weights and one batch's activations in memory; the other
    /// activations wait on disk, and an interrupted pass goes on at the layer it had reached.
    pub fn stream(&mut self, model: &Streamed, input: &Calibration) -> Result<()> {
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
        for (number, forward) in plans.iter().enumerate().skip(done.forward) {
            let layer = done.layer.filter(|_| number == done.forward);
            let mut waiting = Waiting {
                model,
                forward,
                done: Reached {
                    forward: number,
                    layer,
                },
                shapes: shapes(model, input)?,
            };
            let frame = model.frame(input, forward)?;
            self.take(&store, &frame, (forward, input), &mut waiting)?;
            let next = Reached {
                forward: number + 1,
                layer: None,
            };
            model.activations.commit(next, &self.state())?;
        }
        model.activations.remove()
    }
}

/// What each batch's states are: windows, tokens, embed.
fn shapes(model: &Streamed, input: &Calibration) -> Result<Vec<[i64; 3]>> {
    let mut shapes = Vec::new();
    for batch in input.batches() {
        let width = input.windows.window(batch.start)?.len() as i64;
        shapes.push([batch.len() as i64, width, model.n_embed()]);
    }
    Ok(shapes)
}
