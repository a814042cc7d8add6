//! Units of a dim, best first.

use std::collections::BTreeMap;

use crate::blueprint::PruneGroup;
use crate::calibrate::Scores;
use crate::error::{Error, Result};

/// The order of one dim's units: by score, highest first, ties by the lower index.
///
/// Where the units fall into parts (query heads of one key/value head), each part has its own order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranking {
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
                "`{}` has {} units, the scores hold {}; they belong to another model: score this one",
                group.dim,
                group.n_units,
                scores.len()
            );
            return Err(Error::Recipe(message));
        }
        let n_parts = group.n_parts.max(1);
        let per_part = group.n_units / n_parts;
        let order = |part: usize| {
            let mut units: Vec<usize> = (part * per_part..(part + 1) * per_part).collect();
            // A stable sort keeps the lower index first among equals.
            units.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            units
        };
        Ok(Ranking { parts: (0..n_parts).map(order).collect() })
    }

    /// The best `n`, ascending; equally many of each part.
    ///
    /// # Errors
    /// `Plan` when `n` is more than there are, or not divisible by the parts.
    pub fn best(&self, n: usize) -> Result<Vec<usize>> {
        let n_units: usize = self.parts.iter().map(Vec::len).sum();
        if n > n_units || !n.is_multiple_of(self.parts.len()) {
            let message = format!("cannot keep {n} of {n_units} units in {} equal parts", self.parts.len());
            return Err(Error::Plan(message));
        }
        let per_part = n / self.parts.len();
        let mut kept: Vec<usize> = self.parts.iter().flat_map(|part| part.iter().take(per_part)).copied().collect();
        kept.sort_unstable();
        Ok(kept)
    }

    /// All units, best first, part after part.
    pub fn order(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().flatten().copied()
    }
}

/// Rankings by dim; dims that were not scored have none and keep their size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rankings {
    /// For example `mlp.3`.
    pub by_dim: BTreeMap<String, Ranking>,
}

impl Rankings {
    /// Ranks every group that the scores cover, by the metric named for its kind where there is more than one.
    ///
    /// # Errors
    /// `Recipe` when two metrics scored a dim and none was chosen, or scores belong to another model.
    pub fn new(scores: &Scores, groups: &[PruneGroup], by: &BTreeMap<String, String>) -> Result<Self> {
        let mut rankings = Rankings::default();
        if let Some(kind) = by.keys().find(|kind| !kind.is_empty() && groups.iter().all(|group| group.kind() != *kind))
        {
            let mut known: Vec<&str> = groups.iter().map(PruneGroup::kind).collect();
            known.dedup();
            return Err(Error::unknown("axis of this model", kind, known));
        }
        for group in groups {
            // One label for all axes decides where it scored.
            let for_all = by.get("").filter(|label| scores.by_name.contains_key(&format!("{label}/{}", group.dim)));
            let metric = by.get(group.kind()).or(for_all).map(String::as_str);
            if metric.is_some() || scores.covers(&group.dim) {
                let ranking = Ranking::new(group, scores.of(&group.dim, metric)?)?;
                rankings.by_dim.insert(group.dim.clone(), ranking);
            }
        }
        Ok(rankings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(n_parts: usize) -> PruneGroup {
        PruneGroup { dim: "heads.0".into(), layer: Some(0), n_layers: 1, n_units: 6, block: 8, n_parts }
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
}
