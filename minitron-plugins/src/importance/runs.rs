//! Runs of layers: what single-layer and block metrics of depth share.

use minitron_core::calibrate::{Observation, Site};
use minitron_core::contract::{Need, Scorer};
use minitron_core::error::{Error, Result};
use minitron_core::spec::{DEPTH, PruneGroup};

use tch::Tensor;

use super::add_sums;

/// First layers of all runs of `span` layers, for the group of layers; none for other groups.
pub(super) fn starts(group: &PruneGroup, span: usize) -> std::ops::Range<usize> {
    match group.kind() {
        DEPTH => 0..(group.n_units + 1).saturating_sub(span),
        _ => 0..0,
    }
}

/// Both ends of every run of `span` layers, for the group of layers.
pub(super) fn both_ends(group: &PruneGroup, span: usize) -> Option<Need> {
    let sites = starts(group, span).map(|first| Site::LayerSpan { first, span });
    (group.kind() == DEPTH).then(|| Need::Sites(sites.collect()))
}

/// The residual stream that enters the run which was seen, [B, T, E], and the one that leaves it,
/// with the run's first layer.
///
/// # Errors
/// `Internal` for anything but both ends of a run.
pub(super) fn ends_of<'a>(observation: &'a Observation) -> Result<(usize, &'a Tensor, &'a Tensor)> {
    let seen = observation.activations()?;
    match (seen.site, seen.before_btc) {
        (Site::LayerSpan { first, .. }, Some(before_btc)) => Ok((first, before_btc, seen.x_btc)),
        (site, _) => Err(Error::Internal(format!(
            "a metric of runs of layers was shown {site:?}"
        ))),
    }
}

/// A score per layer from one per run: that of the cheapest run which holds the layer.
///
/// The layers of the cheapest run are then the lowest of all, so that a plan which removes `span`
/// layers removes that run.
pub(super) fn cover(by_start: &[f64], span: usize, n_layers: usize) -> Vec<f32> {
    let mut scores = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        let first = (layer + 1).saturating_sub(span);
        let holding = (first..=layer).filter_map(|start| by_start.get(start));
        scores.push(holding.copied().fold(f64::INFINITY, f64::min) as f32);
    }
    scores
}

/// What one observation adds to a run: its first layer, a sum, and what the sum is divided by in
/// the end: how many things were summed, or another sum.
pub(super) type Seen = (usize, f64, f64);

/// The mean or quotient of something over each run of layers, and a score per layer from it.
#[derive(Debug)]
pub(super) struct RunScorer {
    span: usize,
    n_layers: usize,
    see: fn(&Observation) -> Result<Seen>,
    /// From a run's mean to its score.
    value: fn(f64) -> f64,
    /// Sum and count per run.
    sums: Vec<f64>,
}

impl RunScorer {
    /// For the group of layers; `tag` is what an error names.
    ///
    /// # Errors
    /// `Recipe` for a run that no model of so many layers has.
    pub fn boxed(
        tag: &str,
        span: usize,
        group: &PruneGroup,
        see: fn(&Observation) -> Result<Seen>,
        value: fn(f64) -> f64,
    ) -> Result<Box<dyn Scorer>> {
        if !(1..group.n_units.max(2)).contains(&span) {
            let (n, most) = (group.n_units, group.n_units.saturating_sub(1));
            let message =
                format!("{tag}: span: expected 1 to {most} of the model's {n} layers, got {span}");
            return Err(Error::Recipe(message));
        }
        let sums = vec![0.0; 2 * starts(group, span).len()];
        Ok(Box::new(RunScorer {
            span,
            n_layers: group.n_units,
            see,
            value,
            sums,
        }))
    }
}

impl Scorer for RunScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let (start, sum, count) = (self.see)(observation)?;
        if let Some([total, n]) = self.sums.get_mut(2 * start..2 * start + 2) {
            *total += sum;
            *n += count;
        }
        Ok(())
    }

    fn state(&self) -> Vec<f64> {
        self.sums.clone()
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        add_sums(&mut self.sums, state)
    }

    fn finish(&self) -> Result<Vec<f32>> {
        let means = self
            .sums
            .chunks_exact(2)
            .map(|pair| (self.value)(quotient(pair[0], pair[1])));
        Ok(cover(&means.collect::<Vec<_>>(), self.span, self.n_layers))
    }
}

/// Of sums; 0 where nothing was seen.
fn quotient(sum: f64, count: f64) -> f64 {
    if count > 0.0 { sum / count } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::cover;

    #[test]
    fn the_cheapest_run_has_the_lowest_layers() {
        // Runs of two among five layers; 2..4 costs least.
        assert_eq!(
            cover(&[5.0, 3.0, 1.0, 4.0], 2, 5),
            [5.0, 3.0, 1.0, 1.0, 4.0]
        );
        assert_eq!(cover(&[2.0, 1.0, 3.0], 1, 3), [2.0, 1.0, 3.0]);
    }
}
