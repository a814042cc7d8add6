//! Scores and kept units as rows of cells: a row per layer, neighbouring units in one cell.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use minitron_core::calibrate::Scores;
use minitron_core::error::Result;
use minitron_core::plan::Plan;
use minitron_core::spec::{DEPTH, split_dim};

/// Most cells of a row.
const N_CELLS: usize = 64;

/// A map of one axis, a row per layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeatMap {
    /// The metric, or `kept`.
    pub what: String,
    /// For example `mlp`.
    pub axis: String,
    /// Of the longest row.
    pub n_units: usize,
    /// In the order of the layers; one row where the axis is the whole model's.
    pub rows: Vec<HeatRow>,
}

/// A layer's cells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeatRow {
    /// None where the row is the whole model's.
    pub layer: Option<usize>,
    /// Means over neighbouring units, in their order, at most 64.
    pub cells: Vec<f64>,
    /// Lowest value of a unit.
    pub min: f64,
    /// Mean over the units.
    pub mean: f64,
    /// Highest value of a unit.
    pub max: f64,
    /// Units of the row.
    pub n_units: usize,
}

impl HeatRow {
    fn new(layer: Option<usize>, values: &[f64]) -> Self {
        let n_units = values.len();
        let n_cells = n_units.min(N_CELLS);
        let mut cells = Vec::with_capacity(n_cells);
        for idx in 0..n_cells {
            let units = idx * n_units / n_cells..(idx + 1) * n_units / n_cells;
            cells.push(mean(values.get(units).unwrap_or_default()));
        }
        HeatRow {
            layer,
            cells,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            mean: mean(values),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            n_units,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl HeatMap {
    fn new(what: &str, axis: &str, mut rows: Vec<HeatRow>) -> Self {
        rows.sort_by_key(|row| row.layer);
        let n_units = rows.iter().map(|row| row.n_units).max().unwrap_or(0);
        HeatMap {
            what: what.to_owned(),
            axis: axis.to_owned(),
            n_units,
            rows,
        }
    }

    /// Every metric's scores of every axis in a file.
    pub(super) fn of_scores(path: &Path) -> Result<Vec<Self>> {
        let mut rows: BTreeMap<(String, String), Vec<HeatRow>> = BTreeMap::new();
        for (name, scores) in Scores::load(path)?.by_name {
            let (metric, dim) = name.split_once('/').unwrap_or(("", &name));
            let (axis, layer) = split_dim(dim);
            let values: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
            if !values.is_empty() {
                rows.entry((metric.to_owned(), axis.to_owned()))
                    .or_default()
                    .push(HeatRow::new(layer, &values));
            }
        }
        Ok(rows
            .into_iter()
            .map(|((metric, axis), rows)| HeatMap::new(&metric, &axis, rows))
            .collect())
    }

    /// Share of the units that stay, for every axis that lost some; layers that go are empty.
    pub(super) fn of_plan(plan: &Plan, n_units_of: impl Fn(&str) -> Option<usize>) -> Vec<Self> {
        let depth = plan.kept.get(DEPTH);
        let mut rows: BTreeMap<&str, Vec<HeatRow>> = BTreeMap::new();
        for (name, kept) in &plan.kept {
            let (axis, layer) = split_dim(name);
            let least = kept.last().map_or(0, |&last| last + 1);
            let mut values = vec![0.0; n_units_of(axis).unwrap_or(least).clamp(least, 1 << 24)];
            let is_there =
                layer.is_none_or(|layer| depth.is_none_or(|depth| depth.contains(&layer)));
            for &unit in kept.iter().filter(|_| is_there) {
                if let Some(value) = values.get_mut(unit) {
                    *value = 1.0;
                }
            }
            if !values.is_empty() {
                rows.entry(axis)
                    .or_default()
                    .push(HeatRow::new(layer, &values));
            }
        }
        let maps = rows
            .into_iter()
            .map(|(axis, rows)| HeatMap::new("kept", axis, rows));
        maps.filter(|map| map.rows.iter().any(|row| row.min < 1.0))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_means_of_neighbours_and_layers_that_go_are_empty() {
        let values: Vec<f64> = (0..130).map(f64::from).collect();
        let row = HeatRow::new(Some(3), &values);
        assert_eq!(
            (row.cells.len(), row.cells[0], row.cells[63]),
            (64, 0.5, 128.0)
        );
        assert_eq!((row.min, row.max, row.mean), (0.0, 129.0, 64.5));

        let kept = [
            ("mlp.0", vec![0, 2]),
            ("mlp.1", vec![1, 2]),
            ("depth", vec![0]),
            ("hidden", vec![0, 1]),
        ];
        let plan = Plan {
            kept: kept
                .into_iter()
                .map(|(name, kept)| (name.to_owned(), kept))
                .collect(),
        };
        let sizes = |axis: &str| Some(if axis == "mlp" { 4 } else { 2 });
        let maps = HeatMap::of_plan(&plan, sizes);
        let found: Vec<&str> = maps.iter().map(|map| map.axis.as_str()).collect();
        assert_eq!(found, ["depth", "mlp"]);
        assert_eq!(maps[1].rows[0].cells, [1.0, 0.0, 1.0, 0.0]);
        assert_eq!(maps[1].rows[1].cells, [0.0; 4]);
    }
}
