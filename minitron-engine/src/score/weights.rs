//! Weights and gradients of coupled groups, a bounded piece at a time, and measurements of ablated
//! models.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::scorers::ScorerSet;
use crate::ranks::Ranks;
use minitron_core::calibrate::{Measured, Weights};
use minitron_core::checkpoint::TensorSource;
use minitron_core::contract::Subject;
use minitron_core::error::{Error, Present, Result};
use minitron_core::progress::{Progress, Recorder};
use minitron_core::spec::{
    At, DEPTH, ModelSpec, Param, ParamKind, Part, PruneGroup, Side, split_unit,
};

/// Elements looked at together.
const PIECE: usize = 1 << 24;

/// A run of a tensor's rows that carries units of a group.
struct WeightRows {
    name: String,
    rows: Range<usize>,
    units: Range<usize>,
    /// Whether the tensor reads them.
    reads: bool,
    /// Where the units lie.
    place: Option<UnitSpan>,
}

/// Units in order along a side, once or several times: each channel of a pair begins a run of its
/// own in every head.
struct UnitSpan {
    side: i64,
    /// Where they begin on it (within `rows` for the first side).
    starts: Vec<i64>,
    /// Positions of one.
    block: i64,
}

impl ScorerSet {
    /// Shows every weight to the metrics that asked for weights; with `gradients`, under the same
    /// names, to those that asked for gradients too.
    pub fn observe_weights(
        &mut self,
        source: &dyn TensorSource,
        gradients: Option<&dyn TensorSource>,
        spec: &ModelSpec,
        progress: &dyn Progress,
    ) -> Result<()> {
        let wanted = self.weighed_groups();
        let _span = tracing::info_span!("weigh", n_groups = wanted.len()).entered();
        progress.start("weigh, groups", wanted.len() as u64);
        for (slot, group, with_gradient) in wanted {
            for piece in pieces(spec, &group) {
                let weight_ui = piece.read(source)?;
                let gradient_ui = match (with_gradient, gradients) {
                    (true, Some(gradients)) => Some(piece.read(gradients)?),
                    (true, None) => {
                        return Err(Error::Internal(
                            "no gradients for a metric that needs them".into(),
                        ));
                    }
                    (false, _) => None,
                };
                let (units, gradient_ui) = (piece.units.clone(), gradient_ui.as_ref());
                let reads = piece.reads;
                self.show_weights(
                    slot,
                    Weights {
                        units,
                        reads,
                        weight_ui: &weight_ui,
                        gradient_ui,
                    },
                )?;
            }
            progress.advance(1, "");
        }
        progress.finish();
        Ok(())
    }

    /// Measures the model without each run of layers, for the metrics that asked for it: each rank
    /// its share of the runs.
    pub fn measure(&mut self, subject: &Subject, ranks: Ranks) -> Result<()> {
        let _span = tracing::info_span!("measure").entered();
        let mut wanted = Vec::new();
        for (span, evaluator, name, slot) in self.measurements() {
            let firsts = 0..=subject.model.spec.n_layers().saturating_sub(span);
            wanted.extend(firsts.map(|first| (evaluator, name, slot, first..first + span)));
        }
        let (mut own, progress) = (Vec::new(), Recorder::new(subject.progress));
        for idx in ranks.share(wanted.len()) {
            let &(evaluator, name, _, ref layers) = wanted.get(idx).present("a run of layers")?;
            let without = subject.model.without(layers.clone());
            let measured = evaluator.evaluate(&Subject {
                model: &without,
                progress: &progress,
                ..*subject
            })?;
            let value = measured.get(name).ok_or_else(|| {
                let known = measured.keys().map(String::as_str);
                Error::unknown("measurement of this task", name, known)
            })?;
            own.push(*value);
        }
        let all = ranks.gather_numbers(&own)?;
        let mut seen = Vec::with_capacity(wanted.len());
        for (idx, (.., slot, layers)) in wanted.into_iter().enumerate() {
            let of_rank = all.get(idx % ranks.size());
            let value = of_rank.and_then(|values| values.get(idx / ranks.size()));
            let value = *value.present("a measurement of a run of layers")?;
            seen.push((slot, Measured { layers, value }));
        }
        seen.into_iter()
            .try_for_each(|(slot, measured)| self.show_measurement(slot, measured))
    }
}

impl WeightRows {
    /// [U, I] in f32; of a tensor that reads the units, with a unit's channels innermost.
    fn read(&self, source: &dyn TensorSource) -> Result<Tensor> {
        let rows = source
            .read_rows(&self.name, self.rows.clone())?
            .f_to_kind(Kind::Float)?;
        let n_units = self.units.len() as i64;
        let Some(UnitSpan {
            side,
            ref starts,
            block,
        }) = self.place
        else {
            return Ok(rows.f_reshape([1, -1])?);
        };
        let n_run = n_units * block;
        if side == 0 {
            let part = rows.f_narrow(0, 0, n_run)?;
            return match self.reads {
                true => Ok(part
                    .f_reshape([n_units, block, -1])?
                    .f_transpose(1, 2)?
                    .f_reshape([n_units, -1])?),
                false => Ok(part.f_reshape([n_units, -1])?),
            };
        }
        let mut runs = Vec::with_capacity(starts.len());
        for &start in starts {
            let run = rows.f_narrow(side, start, n_run)?.f_moveaxis(side, 0)?;
            let run = run.f_reshape([n_units, block, -1])?;
            runs.push(run.f_transpose(1, 2)?);
        }
        let part = match runs.as_slice() {
            [one] => one.shallow_clone(),
            several => Tensor::f_cat(several, 2)?,
        };
        Ok(part.f_reshape([n_units, -1])?)
    }
}

/// Everything that carries units of the group; a layer's units are all its tensors.
fn pieces(spec: &ModelSpec, group: &PruneGroup) -> Vec<WeightRows> {
    let of_depth = group.kind() == DEPTH;
    let mut pieces = Vec::new();
    for param in &spec.params {
        pieces.extend(
            match (of_depth, param.at) {
                (true, _) => param.layer().map(|layer| whole(spec, param, layer)),
                (_, At::Unit { unit, .. }) if param.unit_of.as_ref() == Some(&group.dim) => {
                    Some(whole(spec, param, unit))
                }
                _ => Some(carrying(spec, group, param)),
            }
            .into_iter()
            .flatten(),
        );
    }
    pieces
}

/// A table writes what it looks up; every other matrix reads one of its sides. Experts in one
/// tensor lie as [X | in | out].
fn is_read(param: &Param, side_idx: usize) -> bool {
    let is_matrix = param.kind == ParamKind::Weight && !param.role.is_table();
    is_matrix
        && param.sides.len() > 1
        && side_idx + 1 + usize::from(param.transposed) == param.sides.len()
}

/// Rows of a tensor, and elements of one.
fn rows_of(spec: &ModelSpec, param: &Param) -> (usize, usize) {
    let mut sides = param
        .sides
        .iter()
        .map(|side| side.len(|dim| size_of(spec, dim)));
    (sides.next().unwrap_or(1), sides.product())
}

fn size_of(spec: &ModelSpec, dim: &str) -> Option<usize> {
    spec.dims.get(dim).map(|dim| dim.size)
}

fn chunks(n: usize, elements_each: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE / elements_each.max(1)).max(1);
    (0..n)
        .step_by(step)
        .map(move |from| from..(from + step).min(n))
}

/// All of a tensor, as one unit.
fn whole(spec: &ModelSpec, param: &Param, unit: usize) -> Vec<WeightRows> {
    let (n_rows, row) = rows_of(spec, param);
    let mut pieces = Vec::new();
    for rows in chunks(n_rows, row) {
        pieces.push(WeightRows {
            name: param.name(),
            rows,
            units: unit..unit + 1,
            reads: false,
            place: None,
        });
    }
    pieces
}

/// Where the group's units begin in a part, and the positions that one of them takes: its own, or
/// those of all units that it parts (the query heads of a key/value head). Inside the units of
/// another dim they begin anew in each.
fn runs_in(spec: &ModelSpec, group: &PruneGroup, part: &Part, start: usize) -> Vec<(usize, usize)> {
    let Some((dim, block)) = part.units(&|dim| size_of(spec, dim)) else {
        return Vec::new();
    };
    let Some(found) = spec.dims.get(dim) else {
        return Vec::new();
    };
    let is_parted = found.partition.as_ref() == Some(&group.dim);
    if dim == group.dim || is_parted {
        return vec![(start, block * found.size / group.n_units.max(1))];
    }
    if !part
        .inner()
        .iter()
        .any(|inner| inner.dims().contains(&group.dim.as_str()))
    {
        return Vec::new();
    }
    let mut runs = Vec::new();
    for unit in 0..found.size {
        let mut at = start + unit * block;
        for inner in part.inner() {
            runs.extend(runs_in(spec, group, inner, at));
            at += inner.len(&|dim| size_of(spec, dim));
        }
    }
    runs
}

fn carrying(spec: &ModelSpec, group: &PruneGroup, param: &Param) -> Vec<WeightRows> {
    let (n_rows, row) = rows_of(spec, param);
    let mut found = Vec::new();
    if let Some(expert) = split_unit(&group.dim).2
        && param.sides.iter().any(Side::is_by_row)
    {
        return carrying_in_row(spec, group, param, expert);
    }
    for (side_idx, side) in param.sides.iter().enumerate() {
        let mut start = 0;
        for part in &side.0 {
            let runs = runs_in(spec, group, part, start);
            if side_idx == 0 {
                for (start, block) in runs {
                    found.extend(rows_of_units(param, group, start, block, row));
                }
            } else {
                let rows = chunks(n_rows, row);
                found.extend(columns_of_units(param, group, &runs, (side_idx, rows)));
            }
            start += part.len(&|dim| size_of(spec, dim));
        }
    }
    found
}

/// Where a tensor of all experts carries the neurons of one.
fn carrying_in_row(
    spec: &ModelSpec,
    group: &PruneGroup,
    param: &Param,
    expert: usize,
) -> Vec<WeightRows> {
    let mut found = Vec::new();
    for (side_idx, side) in param.sides.iter().enumerate().skip(1) {
        let mut start = 0;
        for part in side.in_row(expert).0 {
            let runs = runs_in(spec, group, &part, start);
            let rows = std::iter::once(expert..expert + 1);
            found.extend(columns_of_units(param, group, &runs, (side_idx, rows)));
            start += part.len(&|dim| size_of(spec, dim));
        }
    }
    found
}

fn rows_of_units(
    param: &Param,
    group: &PruneGroup,
    start: usize,
    block: usize,
    row: usize,
) -> Vec<WeightRows> {
    let mut pieces = Vec::new();
    for units in chunks(group.n_units, row * block) {
        pieces.push(WeightRows {
            name: param.name(),
            rows: start + units.start * block..start + units.end * block,
            units,
            reads: is_read(param, 0),
            place: Some(UnitSpan {
                side: 0,
                starts: vec![0],
                block: block as i64,
            }),
        });
    }
    pieces
}

fn columns_of_units(
    param: &Param,
    group: &PruneGroup,
    runs: &[(usize, usize)],
    (side_idx, rows): (usize, impl Iterator<Item = Range<usize>>),
) -> Vec<WeightRows> {
    let Some(&(_, block)) = runs.first() else {
        return Vec::new();
    };
    let starts: Vec<i64> = runs.iter().map(|&(start, _)| start as i64).collect();
    let mut pieces = Vec::new();
    for rows in rows {
        pieces.push(WeightRows {
            name: param.name(),
            rows,
            units: 0..group.n_units,
            reads: is_read(param, side_idx),
            place: Some(UnitSpan {
                side: side_idx as i64,
                starts: starts.clone(),
                block: block as i64,
            }),
        });
    }
    pieces
}
