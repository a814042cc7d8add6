//! `search.json`, every part optional: a search that is under way has not found them all.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::training::Point;
use super::{SEARCH, read_json};
use minitron_core::error::Result;

/// A search for the best shape.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchReport {
    /// The version that wrote the file.
    pub minitron: Option<String>,
    /// What was pruned.
    pub model: Option<String>,
    /// Its parameters.
    pub n_params_source: Option<u64>,
    /// What candidates had to reach.
    pub target: TargetReport,
    /// Of all that was drawn.
    pub seed: Option<u64>,
    /// Shapes looked at.
    pub grid: GridReport,
    /// Shapes that were pruned and trained.
    pub candidates: Vec<CandidateReport>,
    /// Trainings in turn, each of fewer candidates.
    pub rungs: Vec<RungReport>,
    /// Between the order before and after training.
    pub correlation: Option<CorrelationReport>,
    /// From where on the order stays as it is.
    pub settled_at: Option<SettledReport>,
    /// What asking the teacher once for all saved.
    pub shared_teacher: Option<SharedTeacherReport>,
    /// In all.
    pub seconds: Option<f64>,
    /// The best.
    pub winner: Option<WinnerReport>,
    /// What it was made with.
    pub versions: BTreeMap<String, Value>,
    /// False while the search runs.
    pub complete: Option<bool>,
    /// As it was asked for.
    pub options: Value,
    /// What it warned of.
    pub warnings: Vec<String>,
}

/// What candidates have to reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetReport {
    /// Parameters.
    pub params: Option<f64>,
    /// Bytes of weights and key/value cache.
    pub memory_bytes: Option<f64>,
    /// Share of the target that may be missed.
    pub tolerance: Option<f64>,
}

/// Shapes looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GridReport {
    /// All.
    pub n_points: Option<u64>,
    /// That the family's config can express.
    pub n_legal: Option<u64>,
    /// Within the target.
    pub n_within: Option<u64>,
    /// Taken to look.
    pub seconds: Option<f64>,
    /// Speed.
    pub points_per_second: Option<f64>,
}

/// A shape that was pruned and trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CandidateReport {
    /// For example `c01`.
    pub name: String,
    /// Units kept of each axis.
    pub sizes: Sizes,
    /// Parameters.
    pub n_params: Option<u64>,
    /// Bytes of weights and key/value cache.
    pub memory_bytes: Option<u64>,
    /// Before training.
    pub zero_shot: Option<ZeroShotReport>,
    /// Held-out loss against tokens.
    pub curve: Vec<Point>,
    /// The last held-out loss.
    pub loss: Option<f64>,
    /// By that loss.
    pub rank: Option<u64>,
    /// The rung after which it was left out.
    pub eliminated_at: Option<u64>,
}

/// Units kept of each axis.
pub type Sizes = BTreeMap<String, u64>;

/// A candidate before training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ZeroShotReport {
    /// Held-out loss.
    pub loss: Option<f64>,
    /// By that loss.
    pub rank: Option<u64>,
}

/// One round of trainings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RungReport {
    /// Trained in it.
    pub n_candidates: u64,
    /// Each candidate's tokens by its end.
    pub tokens: Option<f64>,
    /// Each candidate's steps by its end.
    pub steps: Option<f64>,
    /// Taken.
    pub seconds: Option<f64>,
    /// Taken by the teacher.
    pub teacher_seconds: Option<f64>,
}

/// Between the order before and after training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CorrelationReport {
    /// Spearman's ρ.
    pub spearman: Option<f64>,
    /// Kendall's τ.
    pub kendall: Option<f64>,
}

/// From where on the order stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettledReport {
    /// Step.
    pub step: Option<f64>,
    /// Tokens.
    pub tokens: Option<f64>,
}

/// What asking the teacher once for all candidates saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharedTeacherReport {
    /// Time.
    pub seconds_saved: Option<f64>,
    /// Asked.
    pub forward_tokens: Option<f64>,
    /// That would have been asked.
    pub forward_tokens_unshared: Option<f64>,
}

/// The best candidate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WinnerReport {
    /// The candidate's.
    pub name: String,
    /// Its folder.
    pub dir: Option<String>,
}

impl SearchReport {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        read_json(&dir.join(SEARCH))
    }

    /// Whether it has ended; a file that does not say so has.
    pub fn is_complete(&self) -> bool {
        self.complete != Some(false)
    }

    /// The one with the lowest loss, those that were trained longest first.
    pub fn leader(&self) -> Option<&CandidateReport> {
        if let Some(winner) = &self.winner
            && let Some(found) = self
                .candidates
                .iter()
                .find(|candidate| candidate.name == winner.name)
        {
            return Some(found);
        }
        let standing = self
            .candidates
            .iter()
            .filter(|candidate| candidate.eliminated_at.is_none());
        let standing = standing.filter_map(|candidate| Some((candidate.loss?, candidate)));
        standing
            .min_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, candidate)| candidate)
    }
}
