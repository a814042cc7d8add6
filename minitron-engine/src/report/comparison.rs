//! `compare.json`, every part optional: a comparison that is under way has not measured them all.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::training::{Point, TermReport, TrainingReport};
use super::{COMPARISON, read_json};
use minitron_core::error::Result;

/// Strategies side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparison {
    /// The version that wrote the file.
    pub minitron: Option<String>,
    /// What is compared.
    pub title: Option<String>,
    /// As it was asked for.
    pub spec: Value,
    /// What was pruned.
    pub model: Option<String>,
    /// Every row is measured with each.
    pub seeds: Vec<u64>,
    /// What is measured.
    pub columns: Vec<ColumnReport>,
    /// The original, evaluated as the rows are, where no row is that.
    pub teacher: Option<RowReport>,
    /// The strategies.
    pub rows: Vec<RowReport>,
    /// Statements that the numbers bear out or not.
    pub checks: Vec<CheckReport>,
    /// How many tokens some rows save.
    pub ratios: Vec<RatioReport>,
    /// What it was made with.
    pub versions: BTreeMap<String, Value>,
    /// In all.
    pub seconds: Option<f64>,
    /// False while the comparison runs.
    pub complete: Option<bool>,
    /// What the comparison warned of, besides its rows.
    pub warnings: Vec<String>,
}

/// A number that is measured of every row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ColumnReport {
    /// Key in [`RowReport::values`].
    pub key: String,
    /// For people.
    pub title: Option<String>,
    /// `lower`, `higher`, or neither.
    pub better: Option<String>,
}

impl ColumnReport {
    /// For people.
    pub fn title(&self) -> &str {
        self.title.as_deref().unwrap_or(&self.key)
    }
}

/// A strategy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowReport {
    /// Its folder.
    pub name: String,
    /// For people.
    pub title: Option<String>,
    /// `waiting`, `running`, `done` or `failed`.
    pub status: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// By column.
    pub values: BTreeMap<String, MeasuredReport>,
    /// Held-out loss against tokens.
    pub curve: Vec<Point>,
    /// Generated text.
    pub samples: Vec<String>,
    /// Folders of its jobs with the first seed.
    pub stages: Vec<String>,
    /// What its jobs warned of.
    pub warnings: Vec<String>,
    /// Losses of its last training with the first seed, read from that training's folder.
    #[serde(skip_deserializing)]
    pub terms: Vec<TermReport>,
}

impl RowReport {
    /// For people.
    pub fn title(&self) -> &str {
        self.title.as_deref().unwrap_or(&self.name)
    }

    /// Whether it ended without numbers.
    pub fn is_failed(&self) -> bool {
        self.status.as_deref() == Some("failed") || self.error.is_some()
    }
}

/// A number over the seeds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MeasuredReport {
    /// Over the seeds.
    pub mean: Option<f64>,
    /// Standard deviation over the seeds, where there are several.
    pub std: Option<f64>,
    /// In the order of the seeds.
    pub by_seed: Vec<Option<f64>>,
}

/// A statement that the numbers bear out or not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckReport {
    /// The statement.
    pub says: String,
    /// None where it cannot be told.
    pub holds: Option<bool>,
    /// The numbers.
    pub detail: Option<String>,
}

/// Rows at rising budgets beside a reference at its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RatioReport {
    /// The column in which they are as good as each other.
    pub by: String,
    /// One for each row.
    pub points: Vec<RatioPoint>,
}

/// What the reference needs to come as far as a row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RatioPoint {
    /// The row.
    pub row: String,
    /// Its tokens.
    pub n_tokens: Option<f64>,
    /// Tokens of the reference, read between its budgets.
    pub reference_tokens: Option<f64>,
    /// How many times as many.
    pub ratio: Option<f64>,
    /// At least so many times: the reference's largest budget does not come so far.
    pub ratio_more_than: Option<f64>,
    /// At most so many times: its smallest comes farther.
    pub ratio_at_most: Option<f64>,
}

impl RatioPoint {
    /// `12.3`, `more than 80`, `at most 2`.
    pub fn words(&self) -> String {
        match (self.ratio, self.ratio_more_than, self.ratio_at_most) {
            (Some(ratio), ..) => format!("{ratio:.1}"),
            (_, Some(ratio), _) => format!("more than {ratio:.1}"),
            (.., Some(ratio)) => format!("at most {ratio:.1}"),
            _ => "–".to_owned(),
        }
    }
}

impl Comparison {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        read_json(&dir.join(COMPARISON))
    }

    /// Reads the curves of trainings that lie in the comparison's folder.
    pub(super) fn read_curves(&mut self, dir: &Path) {
        for row in &mut self.rows {
            // Names of folders in this one, whatever the file says.
            let names = row
                .stages
                .iter()
                .rev()
                .filter_map(|name| Path::new(name).file_name());
            let last = names
                .map(|name| dir.join(name))
                .find(|dir| TrainingReport::is_in(dir));
            let training = last.and_then(|dir| TrainingReport::read(&dir, &row.name).ok());
            row.terms = training.map(|training| training.terms).unwrap_or_default();
        }
    }

    /// The original where it has a row of its own, then the strategies.
    pub fn all_rows(&self) -> impl Iterator<Item = &RowReport> {
        self.teacher.iter().chain(&self.rows)
    }

    /// Whether it has ended; a file that does not say so has.
    pub fn is_complete(&self) -> bool {
        self.complete != Some(false)
    }

    /// The best mean of a column that has a better end.
    pub fn best(&self, column: &ColumnReport) -> Option<f64> {
        let means = self
            .rows
            .iter()
            .filter_map(|row| row.values.get(&column.key)?.mean);
        match column.better.as_deref() {
            Some("lower") => means.min_by(f64::total_cmp),
            Some("higher") => means.max_by(f64::total_cmp),
            _ => None,
        }
    }
}
