//! The forward pass of a calibration, one layer of one batch at a time: with the whole model in
//! memory batch after batch, streamed layer after layer. Both take the same steps, so both see the
//! same numbers.

use std::ops::Range;

use tch::Device;
use tracing::info_span;

use super::forward::{BatchState, ForwardPlan};
use super::parts::encoded;
use super::scorers::ScorerSet;
use crate::ranks::Ranks;
use minitron_core::calibrate::Calibration;
use minitron_core::error::{Error, Result};
use minitron_core::model::{
    BatchStore, Block, Frame, InMemory, LayerStore, MixerContext, Transformer, Walk, run_layers,
};

/// When what a batch showed is added to what was seen before.
pub(super) enum Adding {
    /// When it has been through all layers, with the batches of the other ranks.
    ByBatch,
    /// After each layer: it waits in between.
    ByLayer,
    /// At the end of the pass: what each batch showed at the layer under way, for the folder in
    /// which batches wait.
    Later(Vec<Vec<f64>>),
}

/// One way through the model, of a rank's share of the batches.
pub(super) struct Pass<'a> {
    pub forward: &'a ForwardPlan,
    pub input: &'a Calibration<'a>,
    pub ranks: Ranks,
    pub adding: Adding,
}

/// This rank's share of the batches of a calibration.
pub(super) fn own_batches(input: &Calibration, ranks: Ranks) -> Vec<Range<usize>> {
    let all = input.batches();
    let own = ranks.share(all.len()).filter_map(|idx| all.get(idx));
    own.cloned().collect()
}

/// Tokens of batches, padding included.
pub(super) fn tokens_of(input: &Calibration, batches: &[Range<usize>]) -> Result<usize> {
    let mut n_tokens = 0;
    for batch in batches {
        n_tokens += batch.len() * input.windows.window(batch.start)?.len();
    }
    Ok(n_tokens)
}

/// The batches of a pass under way.
pub(super) struct Calibrating<'a> {
    pub pass: Pass<'a>,
    pub frame: &'a Frame,
    pub device: Device,
    pub batches: Vec<Range<usize>>,
    pub scorers: &'a mut ScorerSet,
    /// That of the batch under way.
    context: Option<(usize, MixerContext)>,
}

impl<'a> Calibrating<'a> {
    fn windows(&self, batch: usize) -> Result<Range<usize>> {
        let windows = self.batches.get(batch).cloned();
        windows.ok_or_else(|| Error::Internal(format!("there is no batch {batch}")))
    }

    /// Windows and their width, of a batch.
    pub fn shape(&self, batch: usize) -> Result<(usize, usize)> {
        let windows = self.windows(batch)?;
        Ok((
            windows.len(),
            self.pass.input.windows.window(windows.start)?.len(),
        ))
    }

    /// Adds what a batch showed, at a layer or after the last one, or keeps it.
    fn add(&mut self, batch: usize, has_left: bool) -> Result<()> {
        match &mut self.pass.adding {
            Adding::ByBatch if has_left => self.scorers.add_round(self.pass.ranks),
            Adding::ByBatch => Ok(()),
            Adding::ByLayer => {
                let parts = self.scorers.take_parts();
                self.scorers.add(&parts)
            }
            Adding::Later(kept) => {
                if batch == 0 {
                    kept.clear();
                }
                kept.push(encoded(&self.scorers.take_parts()));
                Ok(())
            }
        }
    }
}

impl Walk for Calibrating<'_> {
    type State = BatchState;

    fn enter(&mut self, batch: usize) -> Result<BatchState> {
        let windows = self.windows(batch)?;
        let Pass { forward, input, .. } = self.pass;
        let ids_bt = forward.ids(input.windows, windows.clone(), self.device)?;
        let positions_bt = input.windows.positions(windows, self.device)?;
        forward.start(self.frame, &ids_bt, positions_bt.as_ref())
    }

    fn layer(
        &mut self,
        batch: usize,
        layer_idx: usize,
        block: &Block,
        state: &mut BatchState,
    ) -> Result<()> {
        let (n_windows, width) = self.shape(batch)?;
        let windows = self.windows(batch)?;
        self.scorers.first_window = windows.start;
        let context = match self.context.take() {
            Some((of, context)) if of == batch => context,
            _ => {
                let positions_bt = self.pass.input.windows.positions(windows, self.device)?;
                self.frame
                    .context(0, width as i64, None, positions_bt.as_ref())?
            }
        };
        let Pass { forward, input, .. } = self.pass;
        forward.step(state, layer_idx, block, &context, self.scorers)?;
        self.context = Some((batch, context));
        input.progress.advance((n_windows * width) as u64, "");
        self.add(batch, false)
    }

    fn leave(&mut self, batch: usize, state: BatchState) -> Result<()> {
        let Pass { forward, input, .. } = self.pass;
        let targets = forward.targets(input.windows, self.windows(batch)?, self.device)?;
        forward.finish(state, self.frame, targets.as_ref(), self.scorers)?;
        self.add(batch, true)
    }
}

impl ScorerSet {
    /// Sites and ablations, with the whole model in memory. What comes before a removed run of
    /// layers is computed once, so removing each of L layers in turn costs about L/2 passes. Each
    /// rank sees its share of the batches; all know in the end what all have seen.
    pub fn run(&mut self, model: &Transformer, input: &Calibration, ranks: Ranks) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let _span = info_span!("calibrate", n_tokens = input.windows.n_tokens()).entered();
        for forward in ForwardPlan::all(self, &model.spec, input.task)? {
            let pass = Pass {
                forward: &forward,
                input,
                ranks,
                adding: Adding::ByBatch,
            };
            let store = LayerStore::Loaded(model);
            self.take(&store, &model.frame, pass, &mut InMemory::default())?;
        }
        Ok(())
    }

    /// One way through the model; gives what was kept after the last layer.
    pub(super) fn take<'a>(
        &'a mut self,
        store: &LayerStore,
        frame: &'a Frame,
        pass: Pass<'a>,
        shelf: &mut impl BatchStore<Calibrating<'a>>,
    ) -> Result<Vec<Vec<f64>>> {
        let Pass { input, ranks, .. } = pass;
        let batches = own_batches(input, ranks);
        let n_batches = batches.len();
        let n_tokens = tokens_of(input, &batches)?;
        input.progress.start(
            "score, tokens x layers",
            (n_tokens * store.n_layers()) as u64,
        );
        input.progress.advance(
            (n_tokens * BatchStore::begin(shelf).unwrap_or(0)) as u64,
            "",
        );
        let mut walk = Calibrating {
            pass,
            frame,
            device: store.device(),
            batches,
            scorers: self,
            context: None,
        };
        run_layers(store, n_batches, &mut walk, shelf)?;
        let Calibrating { pass, scorers, .. } = walk;
        let kept = match pass.adding {
            Adding::ByBatch => {
                // Ranks that have a batch less take part in the last round with nothing.
                let n_rounds = input.batches().len().div_ceil(ranks.size());
                (n_batches..n_rounds).try_for_each(|_| scorers.add_round(ranks))?;
                Vec::new()
            }
            Adding::ByLayer => Vec::new(),
            Adding::Later(kept) => kept,
        };
        input.progress.finish();
        Ok(kept)
    }
}
