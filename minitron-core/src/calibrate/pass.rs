//! The pass itself: feeds every scorer of every metric, and checks their law.

use std::collections::{BTreeMap, HashMap};

use tch::Tensor;

use super::Site;
use super::observation::Observation;
use super::scores::Scores;
use crate::blueprint::PruneGroup;
use crate::contract::{Importance, Scorer};
use crate::data::Windows;
use crate::error::{Error, Result};
use crate::model::{Tap, Transformer};
use crate::progress::Progress;

/// A metric to compute, under the label its scores are kept by.
#[derive(Debug)]
pub struct Metric {
    /// The part before `/` in a score's name.
    pub label: String,
    /// The plugin.
    pub importance: Box<dyn Importance>,
}

/// All scorers of one pass.
#[derive(Debug)]
pub struct Pass {
    watchers: Vec<Watcher>,
    by_site: HashMap<Site, Vec<usize>>,
}

#[derive(Debug)]
struct Watcher {
    label: String,
    group: PruneGroup,
    scorer: Box<dyn Scorer>,
}

impl Pass {
    /// A scorer for every group that a metric watches.
    ///
    /// # Errors
    /// `Recipe` when two metrics would write one score, or one scores nothing at all.
    pub fn new(metrics: &[Metric], groups: &[PruneGroup]) -> Result<Self> {
        let mut pass = Pass { watchers: Vec::new(), by_site: HashMap::new() };
        for metric in metrics {
            if pass.watchers.iter().any(|w| w.label == metric.label) {
                let message = format!("two metrics are called `{}`; tell them apart with as=LABEL", metric.label);
                return Err(Error::Recipe(message));
            }
            let before = pass.watchers.len();
            for group in groups {
                let sites = metric.importance.watch(group);
                if sites.is_empty() {
                    continue;
                }
                for site in sites {
                    pass.by_site.entry(site).or_default().push(pass.watchers.len());
                }
                let scorer = metric.importance.scorer(group)?;
                pass.watchers.push(Watcher { label: metric.label.clone(), group: group.clone(), scorer });
            }
            if pass.watchers.len() == before {
                return Err(Error::Recipe(format!("metric `{}` scores no axis of this model", metric.label)));
            }
        }
        Ok(pass)
    }

    /// Runs the model over all windows, `batch_size` at a time, without its head.
    pub fn run(
        &mut self,
        model: &Transformer,
        windows: &Windows,
        batch_size: usize,
        progress: &dyn Progress,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        progress.start("score, tokens", windows.n_tokens() as u64);
        for batch in windows.batches(batch_size) {
            let ids_bt = windows.batch(batch, model.device)?;
            let _ = model.hidden(&ids_bt, self, None)?;
            progress.advance(ids_bt.numel() as u64, "");
        }
        progress.finish();
        Ok(())
    }

    /// The scores, each checked: one finite number per unit.
    ///
    /// # Errors
    /// `Plugin` naming the metric that broke its law.
    pub fn finish(&self) -> Result<Scores> {
        let mut by_name = BTreeMap::new();
        for Watcher { label, group, scorer } in &self.watchers {
            let scores = scorer.finish()?;
            let broken = |message: String| Error::Plugin { tag: label.clone(), origin: "importance".into(), message };
            if scores.len() != group.n_units {
                let message = format!("scored {} of {} units of `{}`", scores.len(), group.n_units, group.dim);
                return Err(broken(message));
            }
            if let Some(unit) = scores.iter().position(|score| !score.is_finite()) {
                let message = format!(
                    "scored unit {unit} of `{}` as {}; the model's activations overflow or its weights are not finite",
                    group.dim, scores[unit]
                );
                return Err(broken(message));
            }
            by_name.insert(format!("{label}/{}", group.dim), scores);
        }
        Ok(Scores { by_name, ..Scores::default() })
    }
}

impl Tap for Pass {
    fn wants(&self, site: Site) -> bool {
        self.by_site.contains_key(&site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        let observation = Observation::new(site, x);
        for &idx in self.by_site.get(&site).into_iter().flatten() {
            if let Some(watcher) = self.watchers.get_mut(idx) {
                watcher.scorer.observe(&observation)?;
            }
        }
        Ok(())
    }
}
