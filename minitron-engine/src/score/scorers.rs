//! Who is shown what: the scorers of all metrics over all groups, and the check of their law.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tch::Tensor;

use minitron_core::calibrate::Scores;
use minitron_core::calibrate::{Ablated, Activations, Measured, Observation, Weights};
use minitron_core::contract::{Evaluator, Importance, LogitLoss, Need, Scorer};
use minitron_core::error::{Error, Present, Result};
use minitron_core::model::Site;
use minitron_core::model::Tap;
use minitron_core::random::SplitMix;
use minitron_core::spec::PruneGroup;

/// A metric to compute, under the label its scores are kept by.
#[derive(Debug)]
pub struct Metric {
    /// The part before `/` in a score's name.
    pub label: String,
    /// The plugin.
    pub importance: Box<dyn Importance>,
}

/// All scorers of one scoring. What they need is shown to them by [`ScorerSet::run`] or
/// [`ScorerSet::stream`] (sites, ablations), [`ScorerSet::observe_weights`] (weights, gradients)
/// and [`ScorerSet::measure`] (measurements).
#[derive(Debug)]
pub struct ScorerSet {
    metrics: Vec<Metric>,
    slots: Vec<ScorerSlot>,
    by_site: HashMap<Site, Vec<usize>>,
    /// Index of the first window of the batch under way.
    pub(super) first_window: usize,
}

#[derive(Debug)]
struct ScorerSlot {
    metric: usize,
    group: PruneGroup,
    need: Need,
    scorer: Box<dyn Scorer>,
    /// The same over every n-th window alone, for resampling.
    folds: Vec<Box<dyn Scorer>>,
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
        let scorer = || {
            metric
                .importance
                .scorer(group)
                .map_err(|e| e.at(format!("metric `{}`", metric.label)))
        };
        let mut folds = Vec::new();
        for &site in need.sites() {
            self.by_site.entry(site).or_default().push(self.slots.len());
        }
        if !need.sites().is_empty() {
            folds = (0..n_folds).map(|_| scorer()).collect::<Result<_>>()?;
        }
        let slot = ScorerSlot {
            metric: self.metrics.len(),
            group: group.clone(),
            need,
            scorer: scorer()?,
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
        let span = |site: &Site| {
            if let Site::LayerSpan { span, .. } = site {
                *span
            } else {
                1
            }
        };
        self.by_site.keys().map(span).max().unwrap_or(1)
    }

    /// Lengths of the runs of layers that some metric wants removed from the calibration pass.
    pub fn ablation_spans(&self) -> BTreeSet<usize> {
        let span = |slot: &ScorerSlot| {
            if let Need::Ablations { span } = slot.need {
                Some(span)
            } else {
                None
            }
        };
        self.slots.iter().filter_map(span).collect()
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
        let one = |slot: &ScorerSlot| {
            // A metric of activations and weights keeps its numbers per channel.
            let each = if matches!(slot.need, Need::SitesAndWeights(_)) {
                slot.group.block
            } else {
                1
            };
            let n_numbers = slot.group.n_units * each * slot.need.sites().len().max(1);
            40 * n_numbers * (1 + slot.folds.len())
        };
        self.slots.iter().map(|slot| one(slot) as u64).sum()
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
        let wants = |(idx, slot): (usize, &ScorerSlot)| match slot.need {
            Need::Weights | Need::SitesAndWeights(_) => Some((idx, slot.group.clone(), false)),
            Need::Gradients(_) => Some((idx, slot.group.clone(), true)),
            _ => None,
        };
        self.slots.iter().enumerate().filter_map(wants).collect()
    }

    pub(super) fn show_weights(&mut self, slot: usize, weights: Weights) -> Result<()> {
        self.show(slot, &Observation::Weights(weights))
    }

    pub(super) fn show_measurement(&mut self, slot: usize, measured: Measured) -> Result<()> {
        self.show(slot, &Observation::Measured(measured))
    }

    /// To every metric that asked for runs of that length.
    pub(super) fn show_ablated(&mut self, ablated: Ablated) -> Result<()> {
        let n_layers = ablated.layers.len();
        let observation = Observation::Ablated(ablated);
        for slot in &mut self.slots {
            if matches!(slot.need, Need::Ablations { span } if span == n_layers) {
                slot.scorer.observe(&observation)?;
            }
        }
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
        let has_folds = |&idx: &usize| {
            self.slots
                .get(idx)
                .is_some_and(|slot| !slot.folds.is_empty())
        };
        if watching.iter().any(has_folds) {
            alone = split(&seen)?;
        }
        let observation = Observation::Activations(seen);
        for &idx in watching {
            let Some(slot) = self.slots.get_mut(idx) else {
                continue;
            };
            slot.scorer.observe(&observation)?;
            let n_folds = slot.folds.len();
            for (row, (x_btc, before_btc)) in alone.iter().enumerate().filter(|_| n_folds > 0) {
                let seen = Activations::between(site, x_btc, before_btc.as_ref());
                if let Some(fold) = slot.folds.get_mut((self.first_window + row) % n_folds) {
                    fold.observe(&Observation::Activations(seen))?;
                }
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
            let values = self.checked(slot, slot.scorer.as_ref())?;
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
                let mut scorer = self.fresh(slot)?;
                for _ in 0..states.len() {
                    scorer.merge(
                        states
                            .get(random.below(states.len()))
                            .map_or(&[][..], Vec::as_slice),
                    )?;
                }
                drawn.push(self.checked(slot, scorer.as_ref())?);
            }
            replicates.insert(self.name(slot), drawn);
        }
        Ok(replicates)
    }

    fn fresh(&self, slot: &ScorerSlot) -> Result<Box<dyn Scorer>> {
        let metric = self.metrics.get(slot.metric);
        metric
            .ok_or_else(|| Error::Internal("a slot without its metric".into()))?
            .importance
            .scorer(&slot.group)
    }

    fn label(&self, slot: &ScorerSlot) -> &str {
        self.metrics
            .get(slot.metric)
            .map_or("", |metric| metric.label.as_str())
    }

    fn name(&self, slot: &ScorerSlot) -> String {
        format!("{}/{}", self.label(slot), slot.group.dim)
    }

    fn checked(&self, slot: &ScorerSlot, scorer: &dyn Scorer) -> Result<Vec<f32>> {
        let (scores, group) = (scorer.finish()?, &slot.group);
        let broken = |message: String| Error::Plugin {
            tag: self.label(slot).to_owned(),
            origin: "importance".into(),
            message,
        };
        if scores.len() != group.n_units {
            let message = format!(
                "scored {} of {} units of `{}`",
                scores.len(),
                group.n_units,
                group.dim
            );
            return Err(broken(message));
        }
        if let Some(unit) = scores.iter().position(|score| !score.is_finite()) {
            let message = format!(
                "scored unit {unit} of `{}` as {}; the model's activations overflow or its weights \
                 are not finite",
                group.dim, scores[unit]
            );
            return Err(broken(message));
        }
        Ok(scores)
    }
}

/// The windows of a batch one by one.
fn split(seen: &Activations) -> Result<Vec<(Tensor, Option<Tensor>)>> {
    let n_windows = seen
        .x_btc
        .size()
        .first()
        .copied()
        .present("windows of activations")?;
    let one = |x: &Tensor, row: i64| -> Result<Tensor> { Ok(x.f_narrow(0, row, 1)?) };
    let pair = |row| -> Result<_> {
        Ok((
            one(seen.x_btc, row)?,
            seen.before_btc.map(|x| one(x, row)).transpose()?,
        ))
    };
    (0..n_windows).map(pair).collect()
}

impl Tap for ScorerSet {
    fn wants(&self, site: Site) -> bool {
        self.by_site.contains_key(&site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        self.show_activations(Activations::new(site, x))
    }
}
