//! `search.json`: what was looked at, what each candidate came to, and in which order they ended.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::grid::Survey;
use super::order::{kendall, ranks, settled, spearman};
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::read_text;
use minitron_core::output::write_atomic;
use minitron_core::progress::Progress;
use minitron_core::spec::Sizes;

const FILE: &str = "search.json";

/// search.json.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SearchRecord {
    pub format: u32,
    pub minitron: String,
    /// Digest of everything that decides the result.
    pub inputs: String,
    pub complete: bool,
    pub model: String,
    /// Digest of the model's weights; none where an earlier version wrote this.
    pub weights: String,
    pub options: serde_json::Value,
    pub n_params_source: u64,
    pub target: SearchTarget,
    pub seed: u64,
    pub grid: Option<Survey>,
    pub candidates: Vec<Entry>,
    pub rungs: Vec<RungRecord>,
    pub correlation: Option<Correlation>,
    /// First evaluation of the last rung from which its order stayed what it became.
    pub settled_at: Option<CurvePlace>,
    pub shared_teacher: SharedTeacher,
    pub seconds: f64,
    pub winner: Option<Winner>,
    /// What the search warned of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SearchTarget {
    pub params: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub tolerance: f64,
}

/// A candidate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    #[serde(deserialize_with = "crate::jobs::identity::plain_name")]
    pub name: String,
    pub sizes: Sizes,
    /// The layers that stay, where rankings do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    pub n_params: u64,
    /// Of its weights as stored and one sequence's key/value cache.
    pub memory_bytes: u64,
    pub imbalance: f64,
    /// Before any training.
    pub zero_shot: Option<ZeroShot>,
    /// Held-out losses while it was trained.
    pub curve: Vec<CurvePlace>,
    /// The last of them.
    pub loss: Option<f64>,
    pub rank: Option<usize>,
    /// The rung after which it left; none for those of the last one. Those that were screened out
    /// left before the first.
    pub eliminated_at: Option<usize>,
    pub screened_out: bool,
    /// Why it went no further, where it did not diverge for being bad.
    pub failure: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ZeroShot {
    /// None where it is not finite.
    pub loss: Option<f64>,
    pub rank: usize,
    /// Every loss of the distillation.
    pub terms: BTreeMap<String, f64>,
}

/// A loss at a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct CurvePlace {
    pub step: u64,
    pub tokens: u64,
    pub loss: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RungRecord {
    pub n_candidates: usize,
    /// Step at which it ends.
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub teacher_seconds: f64,
}

/// How alike the order before training and the last one are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Correlation {
    pub spearman: f64,
    pub kendall: f64,
}

/// What one teacher pass for all saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedTeacher {
    /// The teacher's own time.
    pub seconds: f64,
    /// What it would have taken again for every further candidate.
    pub seconds_saved: f64,
    pub forward_tokens: u64,
    pub forward_tokens_unshared: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Winner {
    pub name: String,
    pub dir: String,
}

impl Entry {
    /// Infinite where there is none.
    fn zero_shot_loss(&self) -> f64 {
        self.zero_shot
            .as_ref()
            .and_then(|zero_shot| zero_shot.loss)
            .unwrap_or(f64::INFINITY)
    }

    /// Whether it learns on.
    fn is_in(&self) -> bool {
        self.eliminated_at.is_none() && !self.screened_out && self.failure.is_none()
    }

    /// The rung that it reached, the largest number where it is still in, -1 where it was screened
    /// out, -2 where it failed; and its loss there.
    fn reached(&self) -> (i64, f64) {
        let untrained = self.curve.is_empty().then(|| self.zero_shot_loss());
        let loss = self.loss.or(untrained).unwrap_or(f64::INFINITY);
        let rung = if self.failure.is_some() {
            -2
        } else if self.screened_out {
            -1
        } else {
            self.eliminated_at.map_or(i64::MAX, |rung| rung as i64)
        };
        (rung, loss)
    }

    /// Steps at which it was evaluated.
    fn steps(&self) -> Vec<u64> {
        self.curve.iter().map(|place| place.step).collect()
    }
}

impl SearchRecord {
    /// Indices of those that were not looked at yet.
    pub fn unmeasured(&self) -> Vec<usize> {
        (0..self.candidates.len())
            .filter(|&idx| self.candidates[idx].zero_shot.is_none())
            .collect()
    }

    /// Indices of all candidates by their loss before training, the earlier one first among equals.
    pub fn zero_shot_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by(|&a, &b| {
            self.candidates[a]
                .zero_shot_loss()
                .total_cmp(&self.candidates[b].zero_shot_loss())
        });
        order
    }

    /// One that a run left; none where there is none.
    pub fn load(out: &Path) -> Result<Option<Self>> {
        let path = out.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = read_text(&path).at_path(&path)?;
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Error::Recipe(format!(
                "{}: not a search's record ({e}); --force starts over",
                path.display()
            ))
        })
    }

    /// Adds what was warned of since, each once.
    pub fn note_warnings(&mut self, progress: &dyn Progress) {
        for warning in progress.warnings() {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    /// Whole or not at all.
    pub fn save(&self, out: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Internal(format!("{FILE}: {e}")))?;
        write_atomic(&out.join(FILE), &(text + "\n"))
    }

    /// Indices of those that are still in, in their order.
    pub fn remaining(&self) -> Vec<usize> {
        (0..self.candidates.len())
            .filter(|&idx| self.candidates[idx].is_in())
            .collect()
    }

    /// The same by their last loss, the lowest first.
    pub fn remaining_by_loss(&self) -> Vec<usize> {
        let mut order = self.remaining();
        order.sort_by(|&a, &b| {
            let (a, b) = (self.candidates[a].loss, self.candidates[b].loss);
            a.unwrap_or(f64::INFINITY)
                .total_cmp(&b.unwrap_or(f64::INFINITY))
        });
        order
    }

    /// Orders all by how far they came, then by their loss there.
    pub fn rank(&mut self) {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by(|&a, &b| {
            let (rung_a, loss_a) = self.candidates[a].reached();
            let (rung_b, loss_b) = self.candidates[b].reached();
            rung_b.cmp(&rung_a).then(loss_a.total_cmp(&loss_b))
        });
        for (rank, idx) in order.into_iter().enumerate() {
            self.candidates[idx].rank = Some(rank + 1);
        }
    }

    /// The zero-shot order beside the last one, and when the last one came about.
    pub fn conclude(&mut self) {
        self.rank();
        let pairs: Vec<(f64, f64)> = self
            .candidates
            .iter()
            // Those that were screened out stand in the order of the screening.
            .filter(|entry| !entry.screened_out && entry.failure.is_none())
            .filter_map(|entry| Some((entry.zero_shot_loss(), entry.rank? as f64)))
            .collect();
        let (before, after): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        self.correlation = spearman(&before, &after)
            .zip(kendall(&before, &after))
            .map(|(spearman, kendall)| Correlation { spearman, kendall });
        let finalists: Vec<&Entry> = self
            .candidates
            .iter()
            .filter(|entry| entry.is_in())
            .collect();
        let curves: Vec<Vec<f64>> = finalists
            .iter()
            .map(|entry| entry.curve.iter().map(|place| place.loss).collect())
            .collect();
        let mut neighbours = finalists.windows(2);
        let is_contest =
            curves.len() > 1 && neighbours.all(|pair| pair[0].steps() == pair[1].steps());
        self.settled_at = settled(&curves)
            .filter(|_| is_contest)
            .and_then(|idx| finalists.first()?.curve.get(idx))
            .copied();
    }

    /// Ranks of the zero-shot losses.
    pub fn rank_zero_shot(&mut self) {
        let losses: Vec<f64> = self.candidates.iter().map(Entry::zero_shot_loss).collect();
        for (entry, rank) in self.candidates.iter_mut().zip(ranks(&losses)) {
            if let Some(zero_shot) = &mut entry.zero_shot {
                zero_shot.rank = rank as usize;
            }
        }
    }
}
