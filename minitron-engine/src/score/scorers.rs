//! Who is shown what: the scorers of all metrics over all groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tch::Tensor;

use super::parts::{FreshScorers, Part};
use super::slot::{Metric, ScorerSlot};
use minitron_core::calibrate::{
    Ablated, AblatedStates, Activations, Measured, Observation, Scores, Weights,
};
use minitron_core::contract::{Evaluator, LogitLoss, Need, Scorer};
use minitron_core::error::{Error, Present, Result};
use minitron_core::model::{Site, Tap};
use minitron_core::random::SplitMix;
use minitron_core::spec::PruneGroup;

/// All scorers of one scoring. What they need is shown to them by [`ScorerSet::run`] or
/// [`ScorerSet::stream`] (sites, ablations), [`ScorerSet::observe_weights`] (weights, gradients)
/// and [`ScorerSet::measure`] (measurements).
#[derive(Debug)]
pub struct ScorerSet {
    metrics: Vec<Metric>,
    pub(super) slots: Vec<ScorerSlot>,
    by_site: HashMap<Site, Vec<usize>>,
    /// Of what the batch under way shows.
    pub(super) fresh: FreshScorers,
    /// What was seen and is not yet added to the slots' scorers.
    pub(super) parts: Vec<Part>,
    /// Index of the first window of the batch under way.
    pub(super) first_window: usize,
}

impl ScorerSet {
    /// A scorer for every group that a metric scores; with `n_folds` above 0, those of activations
    /// are ready for [`ScorerSet::replicates`].
    ///
    /// # Errors
    /// `Recipe` when two metrics would write one score, or one scores nothing at all.
    pub fn new(metrics: Vec<Metric>, groups: &[PruneGroup], n_folds: usize) -> Result<Self> {
        let mut scorers = ScorerSet {
            metrics: Vec::new(),
            slots: Vec::new(),
            by_site: HashMap::new(),
            fresh: FreshScorers::default(),
            parts: Vec::new(),
            first_window: 0,
        };
        for metric in metrics {
            if scorers
                .metrics
                .iter()
                .any(|other| other.label == metric.label)
            {
                let message = format!(
                    "two metrics are called `{}`; tell them apart with as=LABEL",
                    metric.label
                );
                return Err(Error::Recipe(message));
            }
            let before = scorers.slots.len();
            for group in groups {
                if let Some(need) = metric.importance.need(group) {
                    scorers.watch(&metric, group, need, n_folds)?;
                }
            }
            if scorers.slots.len() == before {
                return Err(Error::Recipe(format!(
                    "metric `{}` scores no axis of this model",
                    metric.label
                )));
            }
            scorers.metrics.push(metric);
        }
        Ok(scorers)
    }

    fn watch(
        &mut self,
        metric: &Metric,
        group: &PruneGroup,
        need: Need,
        n_folds: usize,
    ) -> Result<()> {
        let mut folds = Vec::new();
        for &site in need.sites() {
            self.by_site.entry(site).or_default().push(self.slots.len());
        }
        if !need.sites().is_empty() {
            for _ in 0..n_folds {
                folds.push(metric.scorer(group)?);
            }
        }
        let slot = ScorerSlot {
            metric: self.metrics.len(),
            group: group.clone(),
            need,
            scorer: metric.scorer(group)?,
            folds,
        };
        self.slots.push(slot);
        Ok(())
    }

    /// Whether some metric looks at activations.
    pub fn wants_sites(&self) -> bool {
        !self.by_site.is_empty()
    }

    /// Most layers between two ends of the residual stream that are looked at together.
    pub(super) fn longest_reach(&self) -> usize {
        let mut longest = 1;
        for site in self.by_site.keys() {
            if let Site::LayerSpan { span, .. } = site {
                longest = longest.max(*span);
            }
        }
        longest
    }

    /// Lengths of the runs of layers without which some metric wants predictions.
    pub fn ablation_spans(&self) -> BTreeSet<usize> {
        let slots = self.slots.iter();
        slots.filter_map(ScorerSlot::predicted_span).collect()
    }

    /// Lengths of the runs of layers without which some metric wants the last states.
    pub fn state_ablation_spans(&self) -> BTreeSet<usize> {
        let slots = self.slots.iter();
        slots.filter_map(ScorerSlot::compared_span).collect()
    }

    /// Whether some metric wants layers removed from the calibration pass.
    pub fn wants_ablations(&self) -> bool {
        !self.ablation_spans().is_empty() || !self.state_ablation_spans().is_empty()
    }

    /// The loss whose gradient is wanted.
    ///
    /// # Errors
    /// `Recipe` when two metrics want the gradients of different losses.
    pub fn gradient_loss(&self) -> Result<Option<Arc<dyn LogitLoss>>> {
        let mut found: Option<&Arc<dyn LogitLoss>> = None;
        for slot in &self.slots {
            let Need::Gradients(loss) = &slot.need else {
                continue;
            };
            if found.is_some_and(|found| format!("{found:?}") != format!("{loss:?}")) {
                return Err(Error::Recipe(
                    "two metrics ask for gradients of different losses; score one by one".into(),
                ));
            }
            found = Some(loss);
        }
        Ok(found.cloned())
    }

    /// Memory of all scorers at the end, roughly: each keeps a handful of numbers per unit and
    /// site.
    pub fn state_bytes(&self) -> u64 {
        self.slots.iter().map(ScorerSlot::state_bytes).sum()
    }

    /// Memory of what one batch shows, as it is added up by so many ranks.
    pub fn part_bytes(&self, batch_size: usize, n_ranks: usize) -> u64 {
        let of_slots = self.slots.iter().map(|slot| slot.part_bytes(batch_size));
        // The scorers and their states; as numbers that travel; all ranks' ones, twice.
        let n_copies = if n_ranks > 1 { 3 + 2 * n_ranks } else { 2 };
        of_slots.sum::<u64>() * n_copies as u64
    }

    /// Whether some metric looks at weights.
    pub fn wants_weights(&self) -> bool {
        !self.weighed_groups().is_empty()
    }

    /// The measurements wanted: layers in a run, what measures, which value.
    pub(super) fn measurements(&self) -> Vec<(usize, &dyn Evaluator, &'static str, usize)> {
        let mut wanted = Vec::new();
        for (idx, slot) in self.slots.iter().enumerate() {
            if let Need::Measurements {
                span,
                evaluator,
                name,
            } = &slot.need
            {
                wanted.push((*span, evaluator.as_ref(), *name, idx));
            }
        }
        wanted
    }

    /// Whether [`ScorerSet::measure`] has something to do, and with it a whole model in memory.
    pub fn wants_measurements(&self) -> bool {
        !self.measurements().is_empty()
    }

    /// Groups whose weights are wanted, and whether a gradient beside them.
    pub(super) fn weighed_groups(&self) -> Vec<(usize, PruneGroup, bool)> {
        let mut weighed = Vec::new();
        for (idx, slot) in self.slots.iter().enumerate() {
            let with_gradient = match slot.need {
                Need::Weights | Need::SitesAndWeights(_) => false,
                Need::Gradients(_) => true,
                _ => continue,
            };
            weighed.push((idx, slot.group.clone(), with_gradient));
        }
        weighed
    }

    pub(super) fn show_weights(&mut self, slot: usize, weights: Weights) -> Result<()> {
        self.show(slot, &Observation::Weights(weights))
    }

    pub(super) fn show_measurement(&mut self, slot: usize, measured: Measured) -> Result<()> {
        self.show(slot, &Observation::Measured(measured))
    }

    pub(super) fn show_ablated(&mut self, ablated: Ablated) -> Result<()> {
        let n_layers = ablated.layers.len();
        self.show_run(
            &Observation::Ablated(ablated),
            n_layers,
            ScorerSlot::predicted_span,
        )
    }

    pub(super) fn show_ablated_states(&mut self, ablated: AblatedStates) -> Result<()> {
        let n_layers = ablated.layers.len();
        let observation = Observation::AblatedStates(ablated);
        self.show_run(&observation, n_layers, ScorerSlot::compared_span)
    }

    /// To every metric that asked for this of runs of that length.
    fn show_run(
        &mut self,
        observation: &Observation,
        n_layers: usize,
        span_of: fn(&ScorerSlot) -> Option<usize>,
    ) -> Result<()> {
        for (idx, slot) in self.slots.iter().enumerate() {
            if span_of(slot) == Some(n_layers) {
                let scorer = self
                    .fresh
                    .get((idx, 0), || new_scorer(&self.metrics, slot))?;
                scorer.observe(observation)?;
            }
        }
        // Runs of rows are added up one by one.
        self.close_part();
        Ok(())
    }

    fn show(&mut self, slot: usize, observation: &Observation) -> Result<()> {
        let Some(slot) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        std::iter::once(&mut slot.scorer)
            .chain(&mut slot.folds)
            .try_for_each(|scorer| scorer.observe(observation))
    }

    /// To every metric that watches the site; to the folds window by window.
    pub(super) fn show_activations(&mut self, seen: Activations) -> Result<()> {
        let Some(watching) = self.by_site.get(&seen.site) else {
            return Ok(());
        };
        let (site, mut alone) = (seen.site, Vec::new());
        let mut slots = watching.iter().filter_map(|&idx| self.slots.get(idx));
        if slots.any(|slot| !slot.folds.is_empty()) {
            alone = split(&seen)?;
        }
        let observation = Observation::Activations(seen);
        for &idx in watching {
            let Some(slot) = self.slots.get(idx) else {
                continue;
            };
            let make = || new_scorer(&self.metrics, slot);
            self.fresh.get((idx, 0), make)?.observe(&observation)?;
            let n_folds = slot.folds.len();
            for (row, (x_btc, before_btc)) in alone.iter().enumerate().filter(|_| n_folds > 0) {
                let seen = Activations::between(site, x_btc, before_btc.as_ref());
                let fold = 1 + (self.first_window + row) % n_folds;
                let scorer = self.fresh.get((idx, fold), make)?;
                scorer.observe(&Observation::Activations(seen))?;
            }
        }
        Ok(())
    }

    /// What all scorers saw so far, in a fixed order.
    pub fn state(&self) -> Vec<Vec<f64>> {
        self.scorers().map(|scorer| scorer.state()).collect()
    }

    fn scorers(&self) -> impl Iterator<Item = &dyn Scorer> {
        self.slots
            .iter()
            .flat_map(|w| std::iter::once(&w.scorer).chain(&w.folds))
            .map(Box::as_ref)
    }

    /// Takes in a state of a pass of the same metrics and groups (an earlier run, another machine).
    pub fn merge(&mut self, state: &[Vec<f64>]) -> Result<()> {
        let scorers = self
            .slots
            .iter_mut()
            .flat_map(|w| std::iter::once(&mut w.scorer).chain(&mut w.folds));
        scorers
            .zip(state)
            .try_for_each(|(scorer, state)| scorer.merge(state))
    }

    /// The scores, each checked: one finite number per unit.
    ///
    /// # Errors
    /// `Plugin` naming the metric that broke its law.
    pub fn finish(&self) -> Result<Scores> {
        let mut scores = Scores::default();
        for slot in &self.slots {
            let values = slot.checked(slot.scorer.as_ref(), self.label(slot))?;
            scores.by_name.insert(self.name(slot), values);
        }
        Ok(scores)
    }

    /// Scores from `n` resamples of the windows with replacement, by `metric/dim`, for metrics of
    /// activations.
    ///
    /// A fold of every `n_folds`-th window is what is drawn; with as many folds as windows, the
    /// windows themselves.
    pub fn replicates(&self, n: usize, seed: u64) -> Result<BTreeMap<String, Vec<Vec<f32>>>> {
        let mut replicates = BTreeMap::new();
        for slot in self.slots.iter().filter(|slot| !slot.folds.is_empty()) {
            let states: Vec<Vec<f64>> = slot.folds.iter().map(|fold| fold.state()).collect();
            let mut drawn = Vec::with_capacity(n);
            for replicate in 0..n {
                // One draw for all groups, so that they stay together.
                let mut random = SplitMix::new(
                    seed ^ (replicate as u64 + 1).wrapping_mul(0x9E6C_63D0_876A_3F6B),
                );
                let mut scorer = new_scorer(&self.metrics, slot)?;
                for _ in 0..states.len() {
                    scorer.merge(
                        states
                            .get(random.below(states.len()))
                            .map_or(&[][..], Vec::as_slice),
                    )?;
                }
                drawn.push(slot.checked(scorer.as_ref(), self.label(slot))?);
            }
            replicates.insert(self.name(slot), drawn);
        }
        Ok(replicates)
    }

    fn label(&self, slot: &ScorerSlot) -> &str {
        self.metrics
            .get(slot.metric)
            .map_or("", |metric| metric.label.as_str())
    }

    fn name(&self, slot: &ScorerSlot) -> String {
        format!("{}/{}", self.label(slot), slot.group.dim)
    }
}

/// One that has seen nothing yet.
fn new_scorer(metrics: &[Metric], slot: &ScorerSlot) -> Result<Box<dyn Scorer>> {
    let metric = metrics.get(slot.metric).present("a slot's metric")?;
    metric.scorer(&slot.group)
}

/// The windows of a batch one by one.
fn split(seen: &Activations) -> Result<Vec<(Tensor, Option<Tensor>)>> {
    let n_windows = seen
        .x_btc
        .size()
        .first()
        .copied()
        .present("windows of activations")?;
    let mut windows = Vec::new();
    for row in 0..n_windows {
        let before_btc = seen.before_btc.map(|x| x.f_narrow(0, row, 1)).transpose()?;
        windows.push((seen.x_btc.f_narrow(0, row, 1)?, before_btc));
    }
    Ok(windows)
}

impl Tap for ScorerSet {
    fn wants(&self, site: Site) -> bool {
        self.by_site.contains_key(&site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        self.show_activations(Activations::new(site, x))
    }
}
