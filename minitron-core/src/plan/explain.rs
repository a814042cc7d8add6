//! Why these units: how far apart the last kept and the first dropped one are, and what resampling
//! makes of it. Data only.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::ranking::{Ranking, Rankings};
use super::saved::Plan;
use crate::error::{Error, Result};
use crate::spec::{DEPTH, ModelSpec, split_dim};

/// A margin below this is a near tie.
const NEAR_TIE: f64 = 0.01;
/// Units whose score lies within this share of the cut are borderline.
const BORDERLINE: f64 = 0.05;
/// Borderline units listed on each side of the cut.
const MAX_LISTED: usize = 8;
/// A kept unit is stable when at least this share of the replicates keep it.
const STABLE: f64 = 0.9;

/// How one dim was cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Whose scores decided.
    pub metric: String,
    /// Of the parts that are cut (query heads of one key/value head), the one with the smallest
    /// margin; the rest is about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<usize>,
    /// Both sides of the cut.
    #[serde(flatten)]
    pub cut: Cut,
    /// (a − b) / |a| for a just kept and b just dropped; for blocks, a the sum of the next best
    /// one, b of the removed one.
    pub margin: f64,
    /// The margin is below 1 %.
    pub near_tie: bool,
    /// Units within 5 % of the cut, nearest first, at most 8 on each side; for blocks, those in one
    /// of the two alone.
    pub borderline: Vec<Borderline>,
    /// Share of the kept units that at least 90 % of the replicates keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<f64>,
}

/// Where kept and dropped meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cut {
    /// Unit by unit.
    Units {
        /// The lowest score that stays.
        last_kept: UnitScore,
        /// The highest that goes.
        first_dropped: UnitScore,
    },
    /// One run of units.
    Blocks {
        /// The one with the lowest sum.
        removed: BlockScore,
        /// The runner-up.
        next: BlockScore,
    },
}

/// A unit and what the metric said.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UnitScore {
    /// Index in the source.
    pub unit: usize,
    /// Its score.
    pub score: f32,
}

/// A run of units and the sum of what the metric said.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BlockScore {
    /// First unit.
    pub first: usize,
    /// Last unit.
    pub last: usize,
    /// Sum of the scores.
    pub sum: f64,
}

/// A unit near the cut.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Borderline {
    /// Index in the source.
    pub unit: usize,
    /// Its score.
    pub score: f32,
    /// On which side it fell.
    pub kept: bool,
    /// Share of the replicates that keep it at the same size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub survives: Option<f64>,
}

impl Plan {
    /// Explains every dim that scores made smaller; entries of dropped layers have no effect and
    /// are left out.
    ///
    /// Replicates are used where the scores hold some, with `bootstrap` the first so many.
    ///
    /// # Errors
    /// `Recipe` when `bootstrap` asks for more replicates than there are.
    pub fn explain(
        &self,
        rankings: &Rankings,
        spec: &ModelSpec,
        bootstrap: Option<usize>,
    ) -> Result<BTreeMap<String, Explained>> {
        let mut explained = BTreeMap::new();
        for (name, ranking) in &rankings.by_dim {
            let (Some(kept), Some(dim)) = (self.kept.get(name), spec.dims.get(name)) else {
                continue;
            };
            let parts = self.parts_of(dim, spec);
            let is_dropped = split_dim(name).1.is_some_and(|layer| {
                self.kept
                    .get(DEPTH)
                    .is_some_and(|depth| !depth.contains(&layer))
            });
            if is_dropped || kept.len() == parts.units().len() {
                continue;
            }
            let n_replicates = n_replicates(name, ranking, bootstrap)?;
            let survival = survival(ranking, kept.len(), &parts.kept, n_replicates)?;
            let mut of_dim = match ranking.contiguous {
                true => of_blocks(ranking, kept),
                false => of_units(ranking, kept, &parts.kept),
            };
            if let (Some(of_dim), Some(survival)) = (&mut of_dim, &survival) {
                of_dim.add(survival, kept);
            }
            explained.extend(of_dim.map(|of_dim| (name.clone(), of_dim)));
        }
        Ok(explained)
    }
}

impl Explained {
    fn new(ranking: &Ranking, cut: Cut, margin: f64, borderline: Vec<Borderline>) -> Self {
        let metric = ranking.metric.clone();
        Explained {
            metric,
            part: None,
            cut,
            margin,
            near_tie: margin < NEAR_TIE,
            borderline,
            stable: None,
        }
    }

    fn add(&mut self, survival: &[f64], kept: &[usize]) {
        let share = |unit: usize| survival.get(unit).copied().unwrap_or(0.0);
        for unit in &mut self.borderline {
            unit.survives = Some(share(unit.unit));
        }
        let n_stable = kept.iter().filter(|&&unit| share(unit) >= STABLE).count();
        self.stable = Some(n_stable as f64 / kept.len().max(1) as f64);
    }
}

fn n_replicates(name: &str, ranking: &Ranking, asked: Option<usize>) -> Result<usize> {
    let found = ranking.replicates.len();
    match asked {
        Some(asked) if asked > found => Err(Error::Recipe(format!(
            "bootstrap: expected {asked} replicates of `{}/{name}`, the scores hold {found}; run \
             `minitron score \
             --bootstrap {asked}`",
            ranking.metric
        ))),
        _ => Ok(asked.unwrap_or(found)),
    }
}

/// Share of the replicates that keep each unit; none without replicates.
fn survival(
    ranking: &Ranking,
    n: usize,
    parts: &[usize],
    n_replicates: usize,
) -> Result<Option<Vec<f64>>> {
    let mut n_kept_u = vec![0usize; ranking.scores.len()];
    for scores in ranking.replicates.iter().take(n_replicates) {
        for unit in ranking.with_scores(scores).best_of_parts(n, parts)? {
            if let Some(n_kept) = n_kept_u.get_mut(unit) {
                *n_kept += 1;
            }
        }
    }
    let shares = n_kept_u
        .into_iter()
        .map(|n_kept| n_kept as f64 / n_replicates.max(1) as f64);
    Ok((n_replicates > 0).then(|| shares.collect()))
}

/// The part with the smallest margin.
fn of_units(ranking: &Ranking, kept: &[usize], parts: &[usize]) -> Option<Explained> {
    let all = ranking.parts();
    let cut = |&part: &usize| Some((part, of_part(ranking, all.get(part)?, kept)?));
    let cuts = parts.iter().filter_map(cut);
    let (part, explained) = cuts.min_by(|(_, a), (_, b)| a.margin.total_cmp(&b.margin))?;
    Some(Explained {
        part: (all.len() > 1).then_some(part),
        ..explained
    })
}

fn of_part(ranking: &Ranking, order: &[usize], kept: &[usize]) -> Option<Explained> {
    let of = |unit: usize| UnitScore {
        unit,
        score: ranking.scores[unit],
    };
    let (stay, go): (Vec<usize>, Vec<usize>) = order
        .iter()
        .partition(|unit| kept.binary_search(unit).is_ok());
    // Both are best first, as the order is.
    let (last_kept, first_dropped) = (of(*stay.last()?), of(*go.first()?));
    let (a, b) = (f64::from(last_kept.score), f64::from(first_dropped.score));
    let cut = (a + b) / 2.0;
    let distance = |unit: &UnitScore| (f64::from(unit.score) - cut).abs();
    let near = |units: &mut dyn Iterator<Item = usize>, kept: bool| -> Vec<Borderline> {
        let near = units
            .map(of)
            .filter(|unit| distance(unit) <= BORDERLINE * cut.abs())
            .take(MAX_LISTED);
        near.map(|UnitScore { unit, score }| Borderline {
            unit,
            score,
            kept,
            survives: None,
        })
        .collect()
    };
    let mut borderline = near(&mut stay.iter().rev().copied(), true);
    borderline.extend(near(&mut go.iter().copied(), false));
    let of_unit = |unit: &Borderline| {
        distance(&UnitScore {
            unit: unit.unit,
            score: unit.score,
        })
    };
    borderline.sort_by(|a, b| of_unit(a).total_cmp(&of_unit(b)));
    Some(Explained::new(
        ranking,
        Cut::Units {
            last_kept,
            first_dropped,
        },
        margin(a, b),
        borderline,
    ))
}

fn of_blocks(ranking: &Ranking, kept: &[usize]) -> Option<Explained> {
    let runs = ranking.runs(ranking.scores.len() - kept.len());
    let [(removed, b), (next, a), ..] = runs.as_slice() else {
        return None;
    };
    // An allocator may have chosen in its own way.
    if kept.iter().any(|unit| removed.contains(unit)) {
        return None;
    }
    let of = |run: &Range<usize>, sum: f64| BlockScore {
        first: run.start,
        last: run.end - 1,
        sum,
    };
    let margin = margin(*a, *b);
    let in_one = |unit: &usize| removed.contains(unit) != next.contains(unit);
    let units = (0..ranking.scores.len()).filter(|unit| margin <= BORDERLINE && in_one(unit));
    let borderline = units
        .map(|unit| Borderline {
            unit,
            score: ranking.scores[unit],
            kept: next.contains(&unit),
            survives: None,
        })
        .collect();
    let cut = Cut::Blocks {
        removed: of(removed, *b),
        next: of(next, *a),
    };
    Some(Explained::new(ranking, cut, margin, borderline))
}

/// (a − b) / |a|; JSON has no infinity, so the largest number where a alone is 0.
fn margin(a: f64, b: f64) -> f64 {
    if a == b {
        0.0
    } else {
        ((a - b) / a.abs()).min(f64::MAX)
    }
}
