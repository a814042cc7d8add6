//! `plan.json`: what was removed, and how close the calls were.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::maps::HeatMap;
use super::read_json;
use minitron_core::error::Result;
use minitron_core::plan::{Cut, Explained, Plan};
use minitron_core::spec::split_dim;

const PLAN: &str = "plan.json";

/// What a pruning removed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pruning {
    /// The stage, or the folder.
    pub name: String,
    /// Every axis.
    pub sizes: Vec<SizeChange>,
    /// Parameters before.
    pub n_params_source: Option<u64>,
    /// Parameters after.
    pub n_params: Option<u64>,
    /// Every dim that scores made smaller.
    pub cuts: Vec<CutSummary>,
    /// Which units stay.
    pub kept: Vec<HeatMap>,
    /// Reconstructions that followed, as recorded.
    pub reconstructed: Option<Value>,
}

/// An axis before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeChange {
    /// For example `mlp`.
    pub axis: String,
    /// Units before.
    pub source: Option<usize>,
    /// Units after.
    pub student: usize,
}

/// How one dim was cut, in the plan's own words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CutSummary {
    /// For example `mlp.3`.
    pub dim: String,
    /// What the plan says of it.
    #[serde(flatten)]
    pub explained: Explained,
}

impl CutSummary {
    /// The lowest that stays and the highest that goes, as units and scores; for blocks, their
    /// layers and sums.
    pub fn sides(&self) -> [(String, f64); 2] {
        match &self.explained.cut {
            Cut::Units {
                last_kept,
                first_dropped,
            } => [last_kept, first_dropped]
                .map(|unit| (unit.unit.to_string(), f64::from(unit.score))),
            Cut::Blocks { removed, next } => {
                [next, removed].map(|block| (format!("{}–{}", block.first, block.last), block.sum))
            }
        }
    }
}

/// What is read of plan.json.
#[derive(Debug, Deserialize)]
struct Recorded {
    #[serde(flatten)]
    plan: Plan,
    #[serde(default)]
    sizes_source: BTreeMap<String, usize>,
    n_params: Option<u64>,
    n_params_source: Option<u64>,
    #[serde(default)]
    explained: BTreeMap<String, Explained>,
    #[serde(rename = "healed")]
    reconstructed: Option<Value>,
}

impl Pruning {
    /// Whether a folder holds a plan.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(PLAN).is_file()
    }

    /// Reads a folder's plan.
    ///
    /// # Errors
    /// `Data` when it is no plan.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Self> {
        let recorded: Recorded = read_json(&dir.join(PLAN))?;
        let all = &recorded.sizes_source;
        // Of a layer's own dim that of its kind, where layers of the source are alike.
        let source = |axis: &str| {
            all.get(axis)
                .or_else(|| all.get(split_dim(axis).0))
                .copied()
        };
        let mut sizes = Vec::new();
        for (axis, student) in recorded.plan.sizes() {
            sizes.push(SizeChange {
                source: source(&axis),
                axis,
                student,
            });
        }
        let kept = HeatMap::of_plan(&recorded.plan, source);
        let mut cuts: Vec<CutSummary> = recorded
            .explained
            .into_iter()
            .map(|(dim, explained)| CutSummary { dim, explained })
            .collect();
        cuts.sort_by(|a, b| a.explained.margin.total_cmp(&b.explained.margin));
        Ok(Pruning {
            name: name.to_owned(),
            sizes,
            n_params_source: recorded.n_params_source,
            n_params: recorded.n_params,
            cuts,
            kept,
            reconstructed: recorded.reconstructed,
        })
    }
}
