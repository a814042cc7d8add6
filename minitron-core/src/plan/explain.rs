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
    /// What a reconstruction left of the cut: of what the part with these units has to add to the
    /// stream, the share that it brings the stream to lack; of channels, the largest share that a
    /// part lacks of its input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
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

impl UnitScore {
    fn of(unit: usize, ranking: &Ranking) -> Self {
        UnitScore {
            unit,
            score: ranking.scores[unit],
        }
    }
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

impl BlockScore {
    fn new(run: &Range<usize>, sum: f64) -> Self {
        BlockScore {
            first: run.start,
            last: run.end - 1,
            sum,
        }
    }
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
            if self.drops_layer_of(name) || kept.len() == parts.units().len() {
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

    fn drops_layer_of(&self, name: &str) -> bool {
        match (split_dim(name).1, self.kept.get(DEPTH)) {
            (Some(layer), Some(depth)) => !depth.contains(&layer),
            _ => false,
        }
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
            error: None,
        }
    }

    fn add(&mut self, survival: &[f64], kept: &[usize]) {
        for unit in &mut self.borderline {
            unit.survives = Some(share(survival, unit.unit));
        }
        let stable = kept.iter().filter(|&&unit| share(survival, unit) >= STABLE);
        let n_stable = stable.count();
        self.stable = Some(n_stable as f64 / kept.len().max(1) as f64);
    }
}

/// Share of the replicates that keep a unit.
fn share(survival: &[f64], unit: usize) -> f64 {
    survival.get(unit).copied().unwrap_or(0.0)
}

fn n_replicates(name: &str, ranking: &Ranking, asked: Option<usize>) -> Result<usize> {
    let found = ranking.replicates.len();
    match asked {
        Some(asked) if asked > found => Err(Error::Recipe(format!(
            "bootstrap: expected {asked} replicates of `{}/{name}`, the scores hold {found}; run \
             `minitron score --bootstrap {asked}`",
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
    let mut cuts: Vec<(usize, Explained)> = Vec::new();
    for &part in parts {
        let explained = all
            .get(part)
            .and_then(|order| of_part(ranking, order, kept));
        cuts.extend(explained.map(|explained| (part, explained)));
    }
    let (part, explained) = cuts
        .into_iter()
        .min_by(|(_, a), (_, b)| a.margin.total_cmp(&b.margin))?;
    Some(Explained {
        part: (all.len() > 1).then_some(part),
        ..explained
    })
}

fn of_part(ranking: &Ranking, order: &[usize], kept: &[usize]) -> Option<Explained> {
    let (stay, go): (Vec<usize>, Vec<usize>) = order
        .iter()
        .partition(|unit| kept.binary_search(unit).is_ok());
    // Both are best first, as the order is.
    let last_kept = UnitScore::of(*stay.last()?, ranking);
    let first_dropped = UnitScore::of(*go.first()?, ranking);
    let (a, b) = (f64::from(last_kept.score), f64::from(first_dropped.score));
    let cut = (a + b) / 2.0;
    let mut borderline = near(cut, stay.iter().rev(), true, ranking);
    borderline.extend(near(cut, go.iter(), false, ranking));
    borderline.sort_by(|a, b| distance(a.score, cut).total_cmp(&distance(b.score, cut)));
    let sides = Cut::Units {
        last_kept,
        first_dropped,
    };
    Some(Explained::new(ranking, sides, margin(a, b), borderline))
}

/// The first units of one side whose score is near the cut.
fn near<'a>(
    cut: f64,
    units: impl Iterator<Item = &'a usize>,
    kept: bool,
    ranking: &Ranking,
) -> Vec<Borderline> {
    units
        .map(|&unit| UnitScore::of(unit, ranking))
        .filter(|unit| distance(unit.score, cut) <= BORDERLINE * cut.abs())
        .take(MAX_LISTED)
        .map(|UnitScore { unit, score }| Borderline {
            unit,
            score,
            kept,
            survives: None,
        })
        .collect()
}

fn distance(score: f32, cut: f64) -> f64 {
    (f64::from(score) - cut).abs()
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
    let margin = margin(*a, *b);
    let mut borderline = Vec::new();
    for (unit, &score) in ranking.scores.iter().enumerate() {
        let is_in_one = removed.contains(&unit) != next.contains(&unit);
        if margin <= BORDERLINE && is_in_one {
            borderline.push(Borderline {
                unit,
                score,
                kept: next.contains(&unit),
                survives: None,
            });
        }
    }
    let cut = Cut::Blocks {
        removed: BlockScore::new(removed, *b),
        next: BlockScore::new(next, *a),
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
