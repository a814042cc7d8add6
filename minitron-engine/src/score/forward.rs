//! What a calibration does with one batch, layer after layer.

use std::collections::BTreeSet;
use std::ops::Range;

use tch::{Device, Tensor};

use super::scorers::ScorerSet;
use minitron_core::calibrate::{Ablated, AblatedStates, Activations};
use minitron_core::error::{Error, Result};
use minitron_core::model::Site;
use minitron_core::model::{Block, Frame, Input, MixerContext, NoTap, Tap, row_chunks};
use minitron_core::windows::{Batch, Task, Windows};

/// One way through the model: an encoder's predictions are of masked text, which its activations
/// are not.
#[derive(Debug)]
pub(super) struct ForwardPlan {
    /// Whether the metrics look at the sites.
    looks: bool,
    /// Lengths of runs of layers to leave out.
    spans: BTreeSet<usize>,
    /// Those without which predictions are shown, and those without which the last states are.
    predicted: BTreeSet<usize>,
    compared: BTreeSet<usize>,
    /// Residual streams kept behind the current one.
    reach: usize,
    task: Option<Task>,
    n_layers: usize,
    vocab: usize,
}

/// One batch on its way.
#[derive(Debug)]
pub(super) struct BatchState {
    /// The residual stream that enters the next layer, last, and those that entered the layers
    /// before it.
    pub recent: Vec<Tensor>,
    /// The residual streams that leave out a run of layers.
    pub ablated: Vec<(Range<usize>, Tensor)>,
}

impl ForwardPlan {
    /// The ways that a pass takes.
    ///
    /// # Errors
    /// `Data` when predictions are needed of a model without a head.
    pub fn all(
        scorers: &ScorerSet,
        model: &minitron_core::spec::ModelSpec,
        task: Option<Task>,
    ) -> Result<Vec<ForwardPlan>> {
        let (predicted, compared) = (scorers.ablation_spans(), scorers.state_ablation_spans());
        if !predicted.is_empty() && (task.is_none() || model.options.head.is_none()) {
            let message = format!(
                "this `{}` model has no language-model head",
                model.architecture
            );
            return Err(Error::Data(format!(
                "{message}; a loss without a layer cannot be taken, score by another metric"
            )));
        }
        let (looks, none) = (scorers.wants_sites(), BTreeSet::new());
        let mut ways = match model.options.causal {
            true => vec![(looks, predicted, compared)],
            false => vec![(looks, none.clone(), compared), (false, predicted, none)],
        };
        ways.retain(|(looks, predicted, compared)| {
            *looks || !predicted.is_empty() || !compared.is_empty()
        });
        let mut plans = Vec::with_capacity(ways.len());
        for (looks, predicted, compared) in ways {
            plans.push(ForwardPlan {
                looks,
                task: task.filter(|_| !predicted.is_empty()),
                spans: &predicted | &compared,
                predicted,
                compared,
                reach: scorers.longest_reach(),
                n_layers: model.n_layers(),
                vocab: model.options.vocab,
            });
        }
        Ok(plans)
    }

    /// Whether the head is needed.
    pub fn predicts(&self) -> bool {
        !self.predicted.is_empty()
    }

    /// Tensors that a state holds before a layer.
    pub fn n_streams(&self, layer_idx: usize) -> (usize, Vec<Range<usize>>) {
        let mut ablated = Vec::new();
        for &span in &self.spans {
            let begun = (0..layer_idx).map(|first| first..first + span);
            ablated.extend(begun.filter(|run| run.end <= self.n_layers));
        }
        ablated.sort_by_key(|run| (run.start, run.end));
        ((layer_idx + 1).min(self.reach), ablated)
    }

    pub fn ids(&self, windows: &Windows, batch: Range<usize>, device: Device) -> Result<Tensor> {
        match self.task {
            Some(task) => Ok(task
                .batch(windows, &batch.collect::<Vec<_>>(), device)?
                .ids_bt),
            None => windows.batch(batch, device),
        }
    }

    pub fn start(
        &self,
        frame: &Frame,
        ids_bt: &Tensor,
        positions_bt: Option<&Tensor>,
    ) -> Result<BatchState> {
        let input = Input {
            ids_bt,
            attention_mask_bt: None,
            positions_bt,
        };
        Ok(BatchState {
            recent: vec![frame.embed(input, 0)?],
            ablated: Vec::new(),
        })
    }

    /// One layer: everything that does not leave it out goes through it, and the metrics look at
    /// the whole model's way.
    pub fn step(
        &self,
        state: &mut BatchState,
        layer_idx: usize,
        block: &Block,
        context: &MixerContext,
        scorers: &mut ScorerSet,
    ) -> Result<()> {
        for (run, x_bte) in &mut state.ablated {
            if layer_idx >= run.end {
                *x_bte = block.forward(x_bte, context, &mut NoTap, None)?;
            }
        }
        let Some(x_bte) = state.recent.last() else {
            return Err(Error::Internal("a batch without a stream".into()));
        };
        for &span in self
            .spans
            .iter()
            .filter(|&&span| layer_idx + span <= self.n_layers)
        {
            state
                .ablated
                .push((layer_idx..layer_idx + span, x_bte.shallow_clone()));
        }
        let after_bte = match self.looks {
            true => look(block, x_bte, context, scorers)?,
            false => block.forward(x_bte, context, &mut NoTap, None)?,
        };
        for span in (1..=state.recent.len()).filter(|_| self.looks) {
            let first = layer_idx + 1 - span;
            if let Some(before_bte) = state.recent.get(state.recent.len() - span)
                && scorers.wants(Site::LayerSpan { first, span })
            {
                scorers
                    .show_activations(Activations::across(first, span, before_bte, &after_bte))?;
            }
        }
        state.recent.push(after_bte);
        if state.recent.len() > self.reach {
            let _ = state.recent.remove(0);
        }
        Ok(())
    }

    /// After the last layer: the last states and the predictions without each run of layers.
    pub fn finish(
        &self,
        mut state: BatchState,
        frame: &Frame,
        targets: Option<&Batch>,
        scorers: &mut ScorerSet,
    ) -> Result<()> {
        let whole = state.recent.pop().filter(|_| !self.compared.is_empty());
        let whole_bte = whole.map(|x_bte| frame.finish(x_bte)).transpose()?;
        for (layers, x_bte) in state.ablated {
            let hidden_bte = frame.finish(x_bte)?;
            if let Some(whole_bte) = &whole_bte
                && self.compared.contains(&layers.len())
            {
                scorers.show_ablated_states(AblatedStates {
                    layers: layers.clone(),
                    whole_bte,
                    without_bte: &hidden_bte,
                })?;
            }
            let Some(targets) = targets.filter(|_| self.predicted.contains(&layers.len())) else {
                continue;
            };
            let hidden_ne = targets.rows(&hidden_bte)?;
            for (start, len) in row_chunks(targets.n_rows(), self.vocab, hidden_ne.device()) {
                let logits_nv = frame.logits(&hidden_ne.f_narrow(0, start, len)?)?;
                let labels_n = targets.labels_n.f_narrow(0, start, len)?;
                let layers = layers.clone();
                scorers.show_ablated(Ablated {
                    layers,
                    logits_nv: &logits_nv,
                    labels_n: &labels_n,
                })?;
            }
        }
        Ok(())
    }

    pub fn targets(
        &self,
        windows: &Windows,
        batch: Range<usize>,
        device: Device,
    ) -> Result<Option<Batch>> {
        self.task
            .map(|task| task.batch(windows, &batch.collect::<Vec<_>>(), device))
            .transpose()
    }
}

fn look(
    block: &Block,
    x_bte: &Tensor,
    context: &MixerContext,
    scorers: &mut ScorerSet,
) -> Result<Tensor> {
    block.shown(x_bte, context, scorers, None)
}
