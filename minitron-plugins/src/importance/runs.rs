//! Runs of layers: what single-layer and block metrics of depth share.

use minitron_core::blueprint::{DEPTH, PruneGroup};
use minitron_core::error::{Error, Result};

/// First layers of all runs of `span` layers, for the group of layers; none for other groups.
pub(super) fn starts(group: &PruneGroup, span: usize) -> std::ops::Range<usize> {
    match group.kind() {
        DEPTH => 0..(group.n_units + 1).saturating_sub(span),
        _ => 0..0,
    }
}

/// Refuses a run that no model of so many layers has.
pub(super) fn check_span(tag: &str, span: usize, group: &PruneGroup) -> Result<()> {
    if (1..group.n_units.max(2)).contains(&span) {
        return Ok(());
    }
    let (n, most) = (group.n_units, group.n_units.saturating_sub(1));
    Err(Error::Recipe(format!("{tag}: span: expected 1 to {most} of the model's {n} layers, got {span}")))
}

/// A score per layer from one per run: that of the cheapest run which holds the layer.
///
/// The layers of the cheapest run are then the lowest of all, so that a plan which removes `span` layers removes that run.
pub(super) fn cover(by_start: &[f64], span: usize, n_layers: usize) -> Vec<f32> {
    let cheapest = |layer: usize| {
        let holding = (layer + 1).saturating_sub(span)..=layer;
        holding.filter_map(|start| by_start.get(start)).copied().fold(f64::INFINITY, f64::min)
    };
    (0..n_layers).map(|layer| cheapest(layer) as f32).collect()
}

/// Means of sums over runs, and the state they are kept in: a sum and a count for each.
#[derive(Debug)]
pub(super) struct Means {
    pub span: usize,
    pub n_layers: usize,
    /// Sum and count per run.
    pub sums: Vec<f64>,
}

impl Means {
    pub fn new(group: &PruneGroup, span: usize) -> Self {
        Means { span, n_layers: group.n_units, sums: vec![0.0; 2 * starts(group, span).len()] }
    }

    pub fn add(&mut self, start: usize, sum: f64, count: f64) {
        if let Some([total, n]) = self.sums.get_mut(2 * start..2 * start + 2) {
            *total += sum;
            *n += count;
        }
    }

    /// A score per layer of `value` of each run's mean.
    pub fn scores(&self, value: impl Fn(f64) -> f64) -> Vec<f32> {
        let means = self.sums.chunks_exact(2).map(|pair| value(pair[0] / pair[1].max(1.0)));
        cover(&means.collect::<Vec<_>>(), self.span, self.n_layers)
    }
}

#[cfg(test)]
mod tests {
    use super::cover;

    #[test]
    fn the_cheapest_run_has_the_lowest_layers() {
        // Runs of two among five layers; 2..4 costs least.
        assert_eq!(cover(&[5.0, 3.0, 1.0, 4.0], 2, 5), [5.0, 3.0, 1.0, 1.0, 4.0]);
        assert_eq!(cover(&[2.0, 1.0, 3.0], 1, 3), [2.0, 1.0, 3.0]);
    }
}
