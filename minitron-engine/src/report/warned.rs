//! What jobs warned of.

use serde::Serialize;

use super::comparison::Comparison;
use crate::recipe::RunRecord;

/// A warning, and what it belongs to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Warned {
    /// Stages or rows; none where it is of the whole.
    pub of: Vec<String>,
    /// In words.
    pub message: String,
}

impl Warned {
    /// What it belongs to, then its words.
    pub fn text(&self) -> String {
        match self.of.as_slice() {
            [] => self.message.clone(),
            of => format!("{}: {}", of.join(", "), self.message),
        }
    }

    /// Of the whole.
    pub(super) fn of_all(messages: &[String]) -> Vec<Self> {
        messages
            .iter()
            .map(|message| Warned {
                of: Vec::new(),
                message: message.clone(),
            })
            .collect()
    }

    /// Of a run's stages.
    pub(super) fn of_run(record: &RunRecord) -> Vec<Self> {
        let stages = record.stages.iter();
        by_message(stages.flat_map(|stage| {
            stage
                .warnings
                .iter()
                .map(|message| (stage.name.as_str(), message))
        }))
    }

    /// Of a comparison, then of its rows.
    pub(super) fn of_comparison(comparison: &Comparison) -> Vec<Self> {
        let rows = comparison.all_rows();
        let of_rows =
            rows.flat_map(|row| row.warnings.iter().map(|message| (row.title(), message)));
        let mut all = Self::of_all(&comparison.warnings);
        all.extend(by_message(of_rows));
        all
    }
}

/// What several are warned of stands once.
fn by_message<'w>(warnings: impl Iterator<Item = (&'w str, &'w String)>) -> Vec<Warned> {
    let mut all: Vec<Warned> = Vec::new();
    for (name, message) in warnings {
        match all.iter_mut().find(|warned| warned.message == *message) {
            Some(warned) => warned.of.push(name.to_owned()),
            None => all.push(Warned {
                of: vec![name.to_owned()],
                message: message.clone(),
            }),
        }
    }
    all
}
