//! The forward pass of a calibration, one layer of one batch at a time: with the whole model in memory batch after batch,
//! streamed layer after layer. Both take the same steps, so both see the same numbers.

use std::collections::BTreeSet;
use std::ops::Range;

use tch::{Device, Tensor};
use tracing::{debug_span, info_span};

use super::Site;
use super::observation::{Ablated, Activations};
use super::pass::Pass;
use super::stream::{Mark, Streamed};
use crate::data::{Targets, Task, Windows};
use crate::error::{Error, Result};
use crate::model::{Block, Context, Frame, Input, NoTap, Tap, Transformer, row_chunks};
use crate::progress::Progress;

/// What a pass runs over.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'a> {
    /// The text.
    pub windows: &'a Windows,
    /// What the model is asked to predict, where something needs predictions.
    pub task: Option<Task>,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

impl Calibration<'_> {
    pub(super) fn batches(&self) -> Vec<Range<usize>> {
        self.windows.batches(self.batch_size)
    }
}

/// One way through the model: an encoder's predictions are of masked text, which its activations are not.
#[derive(Debug)]
pub(super) struct Route {
    /// Whether the metrics look at the sites.
    looks: bool,
    /// Lengths of runs of layers to leave out.
    spans: BTreeSet<usize>,
    /// Residual streams kept behind the current one.
    reach: usize,
    task: Option<Task>,
    n_layers: usize,
    vocab: usize,
}

/// One batch on its way.
#[derive(Debug)]
pub(super) struct Flow {
    /// The residual stream that enters the next layer, last, and those that entered the layers before it.
    pub recent: Vec<Tensor>,
    /// The residual streams that leave out a run of layers.
    pub ablated: Vec<(Range<usize>, Tensor)>,
}

impl Route {
    /// The ways that a pass takes.
    ///
    /// # Errors
    /// `Data` when predictions are needed of a model without a head.
    pub fn all(pass: &Pass, model: &crate::blueprint::Blueprint, task: Option<Task>) -> Result<Vec<Route>> {
        let spans = pass.ablation_spans();
        if !spans.is_empty() && (task.is_none() || model.options.head.is_none()) {
            let message = format!("this `{}` model has no language-model head", model.architecture);
            return Err(Error::Data(format!(
                "{message}; a loss without a layer cannot be taken, score by another metric"
            )));
        }
        let (n_layers, vocab) = (model.n_layers(), model.options.vocab);
        let route = |looks: bool, spans: BTreeSet<usize>| {
            let task = task.filter(|_| !spans.is_empty());
            Route { looks, spans, reach: pass.longest_reach(), task, n_layers, vocab }
        };
        Ok(match (pass.wants_sites(), spans.is_empty()) {
            (false, true) => Vec::new(),
            (looks, _) if model.options.causal || !looks => vec![route(looks, spans)],
            (_, true) => vec![route(true, spans)],
            (_, false) => vec![route(true, BTreeSet::new()), route(false, spans)],
        })
    }

    /// Whether the head is needed.
    pub fn predicts(&self) -> bool {
        !self.spans.is_empty()
    }

    /// Tensors that a flow holds before a layer.
    pub fn n_streams(&self, layer_idx: usize) -> (usize, Vec<Range<usize>>) {
        let begun = |span: usize| (0..layer_idx).map(move |first| first..first + span);
        let ablated = self.spans.iter().flat_map(|&span| begun(span)).filter(|run| run.end <= self.n_layers);
        let mut ablated: Vec<Range<usize>> = ablated.collect();
        ablated.sort_by_key(|run| (run.start, run.end));
        ((layer_idx + 1).min(self.reach), ablated)
    }

    pub fn ids(&self, windows: &Windows, batch: Range<usize>, device: Device) -> Result<Tensor> {
        match self.task {
            Some(task) => Ok(task.batch(windows, &batch.collect::<Vec<_>>(), device)?.ids_bt),
            None => windows.batch(batch, device),
        }
    }

    pub fn start(&self, frame: &Frame, ids_bt: &Tensor, positions_bt: Option<&Tensor>) -> Result<Flow> {
        let input = Input { ids_bt, seen_bt: None, positions_bt };
        Ok(Flow { recent: vec![frame.embed(input, 0)?], ablated: Vec::new() })
    }

    /// One layer: everything that does not leave it out goes through it, and the metrics look at the whole model's way.
    pub fn step(
        &self,
        flow: &mut Flow,
        layer_idx: usize,
        block: &Block,
        context: &Context,
        pass: &mut Pass,
    ) -> Result<()> {
        for (run, x_bte) in &mut flow.ablated {
            if layer_idx >= run.end {
                *x_bte = block.forward(x_bte, context, &mut NoTap, None)?;
            }
        }
        let Some(x_bte) = flow.recent.last() else { return Err(Error::Internal("a batch without a stream".into())) };
        for &span in self.spans.iter().filter(|&&span| layer_idx + span <= self.n_layers) {
            flow.ablated.push((layer_idx..layer_idx + span, x_bte.shallow_clone()));
        }
        let after_bte = match self.looks {
            true => look(block, x_bte, context, pass)?,
            false => block.forward(x_bte, context, &mut NoTap, None)?,
        };
        for span in (1..=flow.recent.len()).filter(|_| self.looks) {
            let first = layer_idx + 1 - span;
            if let Some(before_bte) = flow.recent.get(flow.recent.len() - span)
                && pass.wants(Site::Across { first, span })
            {
                pass.show_activations(Activations::across(first, span, before_bte, &after_bte))?;
            }
        }
        flow.recent.push(after_bte);
        if flow.recent.len() > self.reach {
            let _ = flow.recent.remove(0);
        }
        Ok(())
    }

    /// After the last layer: the predictions without each run of layers.
    pub fn finish(&self, flow: Flow, frame: &Frame, targets: &Targets, pass: &mut Pass) -> Result<()> {
        for (layers, x_bte) in flow.ablated {
            let hidden_ne = targets.rows(&frame.finish(x_bte)?)?;
            for (start, len) in row_chunks(targets.n_rows(), self.vocab) {
                let logits_nv = frame.logits(&hidden_ne.f_narrow(0, start, len)?)?;
                let labels_n = targets.labels_n.f_narrow(0, start, len)?;
                let layers = layers.clone();
                pass.show_ablated(Ablated { layers, logits_nv: &logits_nv, labels_n: &labels_n })?;
            }
        }
        Ok(())
    }

    fn targets(&self, windows: &Windows, batch: Range<usize>, device: Device) -> Result<Option<Targets>> {
        self.task.map(|task| task.batch(windows, &batch.collect::<Vec<_>>(), device)).transpose()
    }
}

fn look(block: &Block, x_bte: &Tensor, context: &Context, pass: &mut Pass) -> Result<Tensor> {
    block.shown(x_bte, context, pass, None)
}

impl Pass {
    /// Sites and ablations, with the whole model in memory. What comes before a removed run of layers is computed once, so
    /// removing each of L layers in turn costs about L/2 passes.
    pub fn run(&mut self, model: &Transformer, input: &Calibration) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let _span = info_span!("calibrate", n_tokens = input.windows.n_tokens()).entered();
        for route in Route::all(self, &model.blueprint, input.task)? {
            input.progress.start("score, tokens", input.windows.n_tokens() as u64);
            for batch in input.batches() {
                let _span = debug_span!("batch", n_windows = batch.len()).entered();
                self.first_window = batch.start;
                let ids_bt = route.ids(input.windows, batch.clone(), model.device)?;
                let positions_bt = input.windows.positions(batch.clone(), model.device)?;
                let context = model.frame.context(0, ids_bt.size2()?.1, None, positions_bt.as_ref())?;
                let mut flow = route.start(&model.frame, &ids_bt, positions_bt.as_ref())?;
                for (layer_idx, block) in model.blocks.iter().enumerate() {
                    route.step(&mut flow, layer_idx, block, &context, self)?;
                }
                if let Some(targets) = route.targets(input.windows, batch, model.device)? {
                    route.finish(flow, &model.frame, &targets, self)?;
                }
                input.progress.advance(ids_bt.numel() as u64, "");
            }
            input.progress.finish();
        }
        Ok(())
    }

    /// The same with one layer's weights and one batch's activations in memory; the other activations wait on disk, and
    /// an interrupted pass goes on at the layer it had reached.
    pub fn stream(&mut self, model: &Streamed, input: &Calibration) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let _span = info_span!("calibrate", n_tokens = input.windows.n_tokens(), streamed = true).entered();
        let (done, state) = model.spill.resume()?;
        self.absorb(&state)?;
        for (number, route) in Route::all(self, model.blueprint, input.task)?.iter().enumerate() {
            if number >= done.route {
                let begin = if number == done.route { done.layer } else { None };
                self.stream_route(model, input, route, Mark { route: number, layer: begin })?;
            }
        }
        model.spill.remove()
    }

    fn stream_route(&mut self, model: &Streamed, input: &Calibration, route: &Route, done: Mark) -> Result<()> {
        let frame = model.frame(input, route)?;
        let (device, batches) = (model.options.device, input.batches());
        let n_layers = model.blueprint.n_layers();
        input.progress.start("score, tokens x layers", (input.windows.n_tokens() * n_layers) as u64);
        if done.layer.is_none() {
            for (number, batch) in batches.iter().enumerate() {
                let ids_bt = route.ids(input.windows, batch.clone(), device)?;
                let positions_bt = input.windows.positions(batch.clone(), device)?;
                let flow = route.start(&frame, &ids_bt, positions_bt.as_ref())?;
                model.spill.put(&done, 0, number, &flow)?;
            }
            model.spill.commit(Mark { layer: Some(0), ..done }, &self.state())?;
        }
        let begin = done.layer.unwrap_or(0);
        input.progress.advance((input.windows.n_tokens() * begin) as u64, "");
        for layer_idx in begin..n_layers {
            let _span = debug_span!("layer", layer_idx).entered();
            let block = Block::open(model.source, model.blueprint, layer_idx, model.options)?;
            for (number, batch) in batches.iter().enumerate() {
                self.first_window = batch.start;
                let width = input.windows.window(batch.start).len() as i64;
                let positions_bt = input.windows.positions(batch.clone(), device)?;
                let context = frame.context(0, width, None, positions_bt.as_ref())?;
                let shape = [batch.len() as i64, width, model.n_embed()];
                let mut flow = model.spill.take(&done, layer_idx, number, route, &shape, model.options)?;
                route.step(&mut flow, layer_idx, &block, &context, self)?;
                model.spill.put(&done, layer_idx + 1, number, &flow)?;
                input.progress.advance((batch.len() as i64 * width) as u64, "");
            }
            model.spill.commit(Mark { layer: Some(layer_idx + 1), ..done }, &self.state())?;
        }
        for (number, batch) in batches.iter().enumerate().filter(|_| route.predicts()) {
            let width = input.windows.window(batch.start).len() as i64;
            let shape = [batch.len() as i64, width, model.n_embed()];
            let flow = model.spill.take(&done, n_layers, number, route, &shape, model.options)?;
            if let Some(targets) = route.targets(input.windows, batch.clone(), device)? {
                route.finish(flow, &frame, &targets, self)?;
            }
        }
        model.spill.commit(Mark { route: done.route + 1, layer: None }, &self.state())?;
        input.progress.finish();
        Ok(())
    }
}
