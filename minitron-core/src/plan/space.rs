//! The sizes a student may have.

use crate::error::{Error, Result};
use crate::spec::Axis;
use std::collections::BTreeMap;

use crate::spec::{
    Constraint, DEPTH, Dim, HEADS, HIDDEN, KV_HEADS, ModelSpec, PruneGroup, ROPE_PAIRS, Sizes,
    split_dim,
};

use super::absent::{OptionalDims, way_out};
use super::axis_sizes::AxisSizes;
use super::ranking::Rankings;
use super::saved::{Parts, Plan};
use super::ties::{Ties, common_multiple, with_queries};

/// The legal sizes of every axis, and what ties them to each other.
#[derive(Debug, Clone)]
pub struct Space {
    /// One entry per kind that some axis can prune, or per dim where layers of the source differ.
    pub axes: Vec<AxisSizes>,
    /// The dims of kinds of which layers may differ.
    pub(super) listed: Vec<String>,
    /// Dims of parts that may go as a whole.
    pub(super) optional: OptionalDims,
    /// Whether the family's config has one number for all layers, and another family one for each.
    may_be_apart: bool,
    /// What ties their sizes.
    pub ties: Ties,
}

impl Space {
    /// The space of a model under the given axes.
    pub fn new(spec: &ModelSpec, axes: &[Box<dyn Axis>]) -> Result<Self> {
        let mut ties = Ties::new(&spec.constraints, spec.sizes());
        let mut found: Vec<AxisSizes> = Vec::new();
        let mut multiples = BTreeMap::new();
        for axis in axes {
            // Before the question that can fail, which then says what happened here.
            let asked = axis.multiple_of();
            let mut groups = axis.groups(spec)?;
            let are_alike = groups
                .windows(2)
                .all(|pair| shape(&pair[0]) == shape(&pair[1]));
            groups.truncate(if are_alike { 1 } else { usize::MAX });
            for group in groups {
                let (kind, full) = (group.kind(), group.n_units);
                let multiple_of = multiple_of(&group.dim, asked, spec, &ties).clamp(1, full.max(1));
                let held = ties.held(kind);
                let step = if held.is_some() {
                    full
                } else {
                    common_multiple(multiple_of, group.n_parts).min(full)
                };
                let kind = if are_alike {
                    kind.to_owned()
                } else {
                    group.dim.clone()
                };
                found.push(AxisSizes {
                    kind,
                    full,
                    step,
                    held,
                });
                multiples.insert(group.dim, multiple_of);
            }
        }
        let queries = with_queries(&mut found, &multiples, spec);
        queries.into_iter().for_each(|queries| ties.share(queries));
        let listed = spec
            .dims
            .values()
            .filter(|dim| dim.is_listed())
            .map(|dim| dim.name.clone())
            .collect();
        Ok(Space {
            axes: found,
            listed,
            optional: OptionalDims::of(spec),
            may_be_apart: spec.may_be_apart(),
            ties,
        })
    }

    /// The students in it whose hidden width is heads x head_dim, as some programs that load them
    /// want it.
    #[must_use]
    pub fn squared(mut self, spec: &ModelSpec) -> Self {
        if self.ties.times(HIDDEN, HEADS).is_none() {
            let head_dim = spec.head_dim();
            self.ties.add(Constraint::hidden_follows_heads(
                head_dim,
                "the student is to be square",
            ));
            for axis in self.axes.iter_mut().filter(|axis| axis.kind == HIDDEN) {
                axis.step = common_multiple(axis.step, head_dim).min(axis.full);
            }
            for axis in self.axes.iter_mut().filter(|axis| axis.kind == ROPE_PAIRS) {
                (axis.step, axis.held) = (axis.full, self.ties.held(ROPE_PAIRS));
            }
        }
        self
    }

    /// The axis of a kind, or of a dim where layers may differ.
    ///
    /// # Errors
    /// `Recipe` listing the axes of this model.
    pub fn axis(&self, kind: &str) -> Result<&AxisSizes> {
        if let Some(axis) = self.find(kind) {
            return Ok(axis);
        }
        if let Some(axis) = self.find(split_dim(kind).0) {
            if self.listed.iter().any(|dim| dim == kind) || self.optional.contains(kind) {
                return Ok(axis);
            }
            return Err(Error::Plan(format!(
                "`{kind}`: this family's config has one number for all layers{}",
                way_out(self.may_be_apart)
            )));
        }
        Err(self.unknown(kind))
    }

    pub(super) fn find(&self, name: &str) -> Option<&AxisSizes> {
        self.axes.iter().find(|axis| axis.kind == name)
    }

    /// No axis has this name; where something holds such sizes, with the reason.
    fn unknown(&self, kind: &str) -> Error {
        let known = self.axes.iter().map(|axis| axis.kind.as_str());
        let unknown = Error::unknown("axis of this model", kind, known);
        match (unknown, self.ties.held(kind)) {
            (Error::Recipe(message), Some(why)) => {
                Error::Recipe(format!("{message}; why not: {why}"))
            }
            (unknown, _) => unknown,
        }
    }

    /// The axis that a dim belongs to.
    ///
    /// # Errors
    /// `Recipe` listing the axes of this model.
    pub fn axis_of(&self, dim: &str) -> Result<&AxisSizes> {
        match self.find(dim) {
            Some(own) => Ok(own),
            None => self.axis(split_dim(dim).0),
        }
    }

    /// The same as [`Space::axis`] beside other sizes: fewer key/value heads leave fewer query
    /// heads, equally many for each.
    ///
    /// # Errors
    /// `Recipe` listing the axes of this model.
    pub fn axis_beside(&self, kind: &str, sizes: &Sizes) -> Result<AxisSizes> {
        Ok(self.ties.beside(
            AxisSizes {
                kind: kind.to_owned(),
                ..self.axis(kind)?.clone()
            },
            sizes,
        ))
    }

    /// Completes and checks sizes: kinds left out keep their size, except that `hidden` and `heads`
    /// follow each other where the family ties them, and that query heads go with their key/value
    /// heads.
    ///
    /// # Errors
    /// `Plan` naming the nearest legal sizes as they are typed.
    pub fn complete(&self, wanted: &Sizes) -> Result<Sizes> {
        self.settle(wanted).map_err(|error| match error {
            Error::Plan(objection) => Error::Plan(format!(
                "{objection}; nearest: {}",
                self.advice(&self.typed(wanted))
            )),
            other => other,
        })
    }

    /// The same without a word about other sizes: for trying many.
    ///
    /// # Errors
    /// `Plan` with the rule that the sizes break.
    pub fn settle(&self, wanted: &Sizes) -> Result<Sizes> {
        let mut wanted = self.by_dim(wanted);
        self.optional.follow(&mut wanted);
        let wanted = &wanted;
        let mut sizes = wanted.clone();
        for (kind, &size) in wanted {
            self.check_size(kind, size, wanted)?;
        }
        self.ties.follow(&mut sizes);
        for axis in &self.axes {
            let full = self.axis_beside(&axis.kind, &sizes)?.full;
            let size = *sizes.entry(axis.kind.clone()).or_insert(full);
            self.check_size(&axis.kind, size, &sizes)?;
        }
        self.check_queries(&sizes)?;
        let of_parts = self.optional.objection(&sizes);
        match of_parts.or_else(|| self.ties.objection(&sizes)) {
            None => Ok(sizes),
            Some(objection) => Err(Error::Plan(objection)),
        }
    }

    /// A size of a kind whose layers differ in the source is one of each of them.
    fn by_dim(&self, sizes: &Sizes) -> Sizes {
        let mut all = sizes.clone();
        for axis in self
            .axes
            .iter()
            .filter(|axis| split_dim(&axis.kind).1.is_some())
        {
            if let Some(&size) = sizes.get(split_dim(&axis.kind).0) {
                all.remove(split_dim(&axis.kind).0);
                all.entry(axis.kind.clone()).or_insert(size);
            }
        }
        all
    }

    /// Sizes under names that can be typed: a layer's own is that of its kind where layers are
    /// alike.
    fn typed(&self, sizes: &Sizes) -> Sizes {
        let mut typed = Sizes::new();
        for (name, size) in self.by_dim(sizes) {
            let name = match self.axis(&name) {
                Err(Error::Plan(_)) => split_dim(&name).0.to_owned(),
                _ => name,
            };
            typed.insert(name, size);
        }
        typed
    }

    pub(super) fn check_size(&self, kind: &str, size: usize, beside: &Sizes) -> Result<()> {
        let whole = self.axis(kind)?;
        if size == 0 && self.optional.contains(kind) {
            return Ok(());
        }
        self.check_common(kind, size, beside)?;
        let axis = self.axis_beside(kind, beside)?;
        let Some(objection) = axis.objection(size) else {
            return Ok(());
        };
        // Absent where nobody asked for fewer.
        let kv_heads = beside.get(KV_HEADS).copied().unwrap_or(0);
        let with = if (axis.full, axis.step) == (whole.full, whole.step) {
            String::new()
        } else {
            format!(" (with {kv_heads} kv_heads)")
        };
        Err(Error::Plan(objection + &with))
    }

    /// The plan that keeps the best units at these sizes.
    ///
    /// # Errors
    /// `Plan` for an illegal size, `Recipe` for an axis that shrinks without scores.
    pub fn plan(&self, wanted: &Sizes, rankings: &Rankings, spec: &ModelSpec) -> Result<Plan> {
        let sizes = self.complete(wanted)?;
        let mut plan = Plan::default();
        // First what no other dim decides: query heads are taken inside the key/value heads that
        // stay.
        for partitioned in [false, true] {
            for dim in spec
                .dims
                .values()
                .filter(|dim| dim.partition.is_some() == partitioned)
            {
                if let Some(&size) = sizes
                    .get(&dim.name)
                    .or_else(|| sizes.get(split_dim(&dim.name).0))
                {
                    let mut kept = kept_units(dim, size, rankings, &plan.parts_of(dim, spec))?;
                    if dim.name == DEPTH {
                        keep_fixed(&mut kept, spec, rankings);
                    }
                    plan.kept.insert(dim.name.clone(), kept);
                }
            }
        }
        Ok(plan)
    }

    /// Sizes of the source.
    pub fn full(&self) -> Sizes {
        self.axes
            .iter()
            .map(|axis| (axis.kind.clone(), axis.full))
            .collect()
    }
}

/// Layers that have to stay take the places of those that matter least.
fn keep_fixed(kept: &mut Vec<usize>, spec: &ModelSpec, rankings: &Rankings) {
    let fixed: Vec<usize> = spec.fixed_layers.iter().map(|(layer, _)| *layer).collect();
    let missing: Vec<usize> = fixed
        .iter()
        .copied()
        .filter(|layer| !kept.contains(layer))
        .collect();
    // Absent where no layer goes.
    let mut worst_first: Vec<usize> = rankings
        .by_dim
        .get(DEPTH)
        .map(|ranking| ranking.order().collect())
        .unwrap_or_default();
    worst_first.reverse();
    for layer in missing {
        let goes = worst_first
            .iter()
            .find(|other| kept.contains(other) && !fixed.contains(other))
            .copied();
        if let Some(goes) = goes {
            kept.retain(|&other| other != goes);
            kept.push(layer);
        }
    }
    kept.sort_unstable();
}

fn kept_units(dim: &Dim, size: usize, rankings: &Rankings, parts: &Parts) -> Result<Vec<usize>> {
    let whole = parts.units();
    match rankings.by_dim.get(&dim.name) {
        _ if size == whole.len() => Ok(whole),
        _ if size == 0 => Ok(Vec::new()),
        Some(ranking) => ranking.best_of_parts(size, &parts.kept),
        None => {
            if let Some(why) = rankings.unclear.get(&dim.name) {
                return Err(Error::Recipe(why.clone()));
            }
            let message = format!(
                "`{}` is to shrink to {size}, but the scores hold nothing for it",
                dim.name
            );
            let kind = split_dim(&dim.name).0;
            Err(Error::Recipe(format!(
                "{message}; score it with a metric that covers {kind}"
            )))
        }
    }
}

/// What decides which sizes of a group are legal.
fn shape(group: &PruneGroup) -> (usize, usize, usize) {
    (group.n_units, group.n_parts, group.block)
}

/// What sizes of a dim are multiples of: what the axis asks for, or the product that it is, or the
/// dim's own rule.
fn multiple_of(dim: &str, asked: Option<usize>, spec: &ModelSpec, ties: &Ties) -> usize {
    match (asked, ties.factor_of(split_dim(dim).0)) {
        (Some(asked), Some(factor)) => common_multiple(asked, factor),
        (Some(asked), None) => asked,
        (None, Some(factor)) => factor,
        (None, None) => spec.dims.get(dim).map_or(1, |dim| dim.multiple_of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_legal_sizes_surround_the_wish() {
        let axis = AxisSizes {
            kind: "mlp".into(),
            full: 22,
            step: 4,
            held: None,
        };
        assert_eq!(axis.legal(), [4, 8, 12, 16, 20, 22]);
        assert_eq!(axis.nearest(10), [8, 12]);
        assert_eq!(axis.nearest(1), [4]);
        assert_eq!(axis.nearest(99), [22]);
        assert!(axis.check(0).is_err() && axis.check(21).is_err() && axis.check(22).is_ok());
    }
}
