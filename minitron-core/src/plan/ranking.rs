//! Units of a dim, best first.

use std::collections::BTreeMap;
use std::ops::Range;

use super::blocks::BlockScores;
use crate::calibrate::Scores;
use crate::error::{Error, Result};
use crate::spec::{PruneGroup, split_dim};

/// The order of one dim's units: by score, highest first, ties by the lower index.
///
/// Where the units fall into parts (query heads of one key/value head), each part has its own
/// order.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// The metric that decides, where one is named.
    pub metric: String,
    /// What it said.
    pub scores: Vec<f32>,
    /// What it said over resampled windows, where that was asked.
    pub replicates: Vec<Vec<f32>>,
    /// What goes is one run of units.
    pub contiguous: bool,
    parts: Vec<Vec<usize>>,
}

impl Ranking {
    /// Orders a group's units.
    ///
    /// # Errors
    /// `Recipe` when there is not one score per unit: the scores belong to another model.
    pub fn new(group: &PruneGroup, scores: &[f32]) -> Result<Self> {
        if scores.len() != group.n_units {
            let message = format!(
                "`{}` has {} units, the scores hold {}; they belong to another model: score this \
                 one",
                group.dim,
                group.n_units,
                scores.len()
            );
            return Err(Error::Recipe(message));
        }
        let parts = ordered(scores, group.n_parts.max(1));
        let (scores, contiguous) = (scores.to_vec(), group.contiguous);
        Ok(Ranking {
            metric: String::new(),
            scores,
            replicates: Vec::new(),
            contiguous,
            parts,
        })
    }

    /// The same units under other scores, one per unit.
    pub fn with_scores(&self, scores: &[f32]) -> Self {
        Ranking {
            metric: self.metric.clone(),
            scores: scores.to_vec(),
            replicates: Vec::new(),
            contiguous: self.contiguous,
            parts: ordered(scores, self.parts.len()),
        }
    }

    /// The best `n`, ascending; equally many of each part.
    ///
    /// # Errors
    /// `Plan` when `n` is more than there are, or not divisible by the parts.
    pub fn best(&self, n: usize) -> Result<Vec<usize>> {
        self.best_of_parts(n, &(0..self.parts.len()).collect::<Vec<_>>())
    }

    /// The same out of some of the parts: query heads of the key/value heads that stay.
    ///
    /// Of a contiguous group, the run that goes is the one with the lowest sum of scores, the
    /// earliest among equals.
    ///
    /// # Errors
    /// `Plan` when `n` is more than they hold, or not divisible by their number.
    pub fn best_of_parts(&self, n: usize, parts: &[usize]) -> Result<Vec<usize>> {
        let chosen: Vec<&Vec<usize>> = parts
            .iter()
            .filter_map(|&part| self.parts.get(part))
            .collect();
        let n_units: usize = chosen.iter().map(|part| part.len()).sum();
        if n > n_units || !n.is_multiple_of(chosen.len().max(1)) {
            let message = format!(
                "cannot keep {n} of {n_units} units in {} equal parts",
                chosen.len()
            );
            return Err(Error::Plan(message));
        }
        if self.contiguous {
            let gone = self
                .runs(n_units - n)
                .into_iter()
                .next()
                .map_or(0..0, |(run, _)| run);
            return Ok((0..n_units).filter(|unit| !gone.contains(unit)).collect());
        }
        let per_part = n / chosen.len().max(1);
        let mut kept: Vec<usize> = chosen
            .iter()
            .flat_map(|part| part.iter().take(per_part))
            .copied()
            .collect();
        kept.sort_unstable();
        Ok(kept)
    }

    /// Every run of so many units with its sum of scores, lowest first, the earlier one among
    /// equals.
    pub fn runs(&self, len: usize) -> Vec<(Range<usize>, f64)> {
        let windows = self
            .scores
            .windows(len.max(1))
            .take(if len == 0 { 0 } else { usize::MAX });
        let mut runs: Vec<_> = windows
            .enumerate()
            .map(|(start, run)| (start..start + len, total(run)))
            .collect();
        // A stable sort keeps the earlier run first among equals.
        runs.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        runs
    }

    /// The units of each part, best first.
    pub fn parts(&self) -> &[Vec<usize>] {
        &self.parts
    }

    /// All units, best first, part after part.
    pub fn order(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().flatten().copied()
    }
}

fn total(scores: &[f32]) -> f64 {
    scores.iter().map(|&score| f64::from(score)).sum()
}

/// The units of each part, best first.
fn ordered(scores: &[f32], n_parts: usize) -> Vec<Vec<usize>> {
    let per_part = scores.len() / n_parts.max(1);
    let mut parts = Vec::with_capacity(n_parts);
    for part in 0..n_parts {
        let mut units: Vec<usize> = (part * per_part..(part + 1) * per_part).collect();
        // A stable sort keeps the lower index first among equals.
        units.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        parts.push(units);
    }
    parts
}

/// Rankings by dim; dims that were not scored have none and keep their size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rankings {
    /// For example `mlp.3`.
    pub by_dim: BTreeMap<String, Ranking>,
    /// Dims that more than one metric scored and none was chosen for: what to answer when one of
    /// them is to shrink.
    pub unclear: BTreeMap<String, String>,
    /// What smaller parts of layers cost, where that was measured.
    pub blocks: Option<BlockScores>,
}

impl Rankings {
    /// Ranks every group that the scores cover, by the metric named for its kind where there is
    /// more than one.
    ///
    /// # Errors
    /// `Recipe` when the metric named did not score a dim, or scores belong to another model.
    pub fn new(
        scores: &Scores,
        groups: &[PruneGroup],
        by: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut rankings = Rankings::default();
        if let Some(kind) = by
            .keys()
            .find(|kind| !kind.is_empty() && groups.iter().all(|group| group.kind() != *kind))
        {
            let mut known: Vec<&str> = groups.iter().map(PruneGroup::kind).collect();
            known.dedup();
            return Err(Error::unknown("axis of this model", kind, known));
        }
        for group in groups {
            // One label for all axes decides where it scored.
            let for_all = by.get("").filter(|label| {
                scores
                    .by_name
                    .contains_key(&format!("{label}/{}", group.dim))
            });
            let metric = by.get(group.kind()).or(for_all).map(String::as_str);
            if metric.is_some() || scores.covers(&group.dim) {
                let found = match scores.of(&group.dim, metric) {
                    Err(Error::Recipe(message)) if metric.is_none() => {
                        rankings.unclear.insert(group.dim.clone(), message);
                        continue;
                    }
                    found => found?,
                };
                let mut ranking = Ranking::new(group, found)?;
                let name = name_of(scores, &group.dim, metric);
                ranking.replicates = replicates(scores, name, group)?;
                ranking.metric = name
                    .split_once('/')
                    .map_or("", |(label, _)| label)
                    .to_owned();
                rankings.by_dim.insert(group.dim.clone(), ranking);
            }
        }
        Ok(rankings)
    }
}

impl Rankings {
    /// Whether some metric scored this kind of dim.
    pub fn covers(&self, kind: &str) -> bool {
        let mut dims = self.by_dim.keys().chain(self.unclear.keys());
        dims.any(|dim| dim == kind || split_dim(dim).0 == kind)
    }
}

/// `metric/dim` of the scores that decide, once [`Scores::of`] has found them.
fn name_of<'a>(scores: &'a Scores, dim: &str, metric: Option<&str>) -> &'a str {
    for name in scores.by_name.keys() {
        if let Some((label, of)) = name.split_once('/')
            && of == dim
            && metric.is_none_or(|wanted| wanted == label)
        {
            return name;
        }
    }
    ""
}

fn replicates(scores: &Scores, name: &str, group: &PruneGroup) -> Result<Vec<Vec<f32>>> {
    // Absent without `score --bootstrap`.
    let replicates = scores.replicates.get(name).cloned().unwrap_or_default();
    match replicates
        .iter()
        .find(|replicate| replicate.len() != group.n_units)
    {
        None => Ok(replicates),
        Some(other) => {
            let (expected, got) = (group.n_units, other.len());
            let message = format!(
                "the replicates of `{name}`: expected {expected} units each, got {got}; score it \
                 again"
            );
            Err(Error::Recipe(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(n_parts: usize) -> PruneGroup {
        PruneGroup {
            dim: "heads.0".into(),
            layer: Some(0),
            n_layers: 1,
            sites: Vec::new(),
            n_units: 6,
            block: 8,
            n_parts,
            contiguous: false,
        }
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let ranking = Ranking::new(&heads(1), &[1.0, 2.0, 1.0, 2.0, 0.0, 1.0]).unwrap();
        assert_eq!(ranking.order().collect::<Vec<_>>(), [1, 3, 0, 2, 5, 4]);
        assert_eq!(ranking.best(3).unwrap(), [0, 1, 3]);
    }

    #[test]
    fn every_part_keeps_equally_many() {
        let ranking = Ranking::new(&heads(2), &[9.0, 8.0, 7.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(ranking.best(2).unwrap(), [0, 5]);
        assert!(ranking.best(3).is_err());
        assert!(ranking.best(8).is_err());
    }
    #[test]
    fn some_parts_alone_keep_equally_many() {
        let ranking = Ranking::new(&heads(3), &[1.0, 2.0, 9.0, 8.0, 3.0, 4.0]).unwrap();
        assert_eq!(ranking.best_of_parts(2, &[0, 2]).unwrap(), [1, 5]);
        assert_eq!(ranking.best_of_parts(4, &[0, 2]).unwrap(), [0, 1, 4, 5]);
        assert!(
            ranking.best_of_parts(3, &[0, 2]).is_err()
                && ranking.best_of_parts(6, &[0, 2]).is_err()
        );
    }

    #[test]
    fn a_contiguous_group_loses_the_run_with_the_lowest_sum_the_earliest_among_equals() {
        let group = PruneGroup {
            dim: "depth".into(),
            layer: None,
            block: 1,
            contiguous: true,
            ..heads(1)
        };
        let ranking = Ranking::new(&group, &[9.0, 1.0, 8.0, 3.0, 4.0, 9.0]).unwrap();
        // The single worst layer is 1, the worst pair 3 and 4.
        assert_eq!(ranking.best(5).unwrap(), [0, 2, 3, 4, 5]);
        assert_eq!(ranking.best(4).unwrap(), [0, 1, 2, 5]);
        assert_eq!(ranking.best(6).unwrap(), [0, 1, 2, 3, 4, 5]);
        let level = Ranking::new(&group, &[2.0, 1.0, 1.0, 2.0, 1.0, 1.0]).unwrap();
        assert_eq!(level.best(4).unwrap(), [0, 3, 4, 5]);
    }
}
