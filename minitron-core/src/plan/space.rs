//! The sizes a student may have.

use crate::blueprint::{Blueprint, HEADS, HIDDEN, Sizes, split_dim};
use crate::contract::Axis;
use crate::error::{Error, Result};

use super::Plan;
use super::ranking::Rankings;

/// The legal sizes of one kind of dim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AxisSizes {
    /// `hidden`, `mlp`, `heads`, `depth`.
    pub kind: String,
    /// Size of the source.
    pub full: usize,
    /// Legal sizes are multiples of this, and the full size.
    pub step: usize,
}

impl AxisSizes {
    /// All legal sizes, ascending.
    pub fn legal(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = (self.step..=self.full).step_by(self.step.max(1)).collect();
        if sizes.last() != Some(&self.full) {
            sizes.push(self.full);
        }
        sizes
    }

    /// The nearest legal sizes below and above.
    pub fn nearest(&self, size: usize) -> Vec<usize> {
        let legal = self.legal();
        let above = legal.partition_point(|&s| s < size);
        let mut near: Vec<usize> = above.checked_sub(1).and_then(|i| legal.get(i)).copied().into_iter().collect();
        near.extend(legal.get(above));
        near
    }

    /// Refuses an illegal size.
    ///
    /// # Errors
    /// `Plan` naming the nearest legal sizes.
    pub fn check(&self, size: usize) -> Result<()> {
        if size == self.full || (size > 0 && size < self.full && size.is_multiple_of(self.step)) {
            return Ok(());
        }
        let rule = if self.step > 1 { format!(" multiple of {}", self.step) } else { " size".to_owned() };
        Err(Error::Plan(format!(
            "{}: {size} is not legal, expected a{rule} up to {}; nearest: {}",
            self.kind,
            self.full,
            words(&self.nearest(size))
        )))
    }
}

fn words(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// The legal sizes of every axis, and what ties them to each other.
#[derive(Debug, Clone)]
pub struct Space {
    /// One entry per kind that some axis can prune.
    pub axes: Vec<AxisSizes>,
    /// `hidden = heads x head_dim` always; the value is `head_dim`.
    pub hidden_per_head: Option<usize>,
    /// `hidden` must be a multiple of `heads`.
    pub heads_divide_hidden: bool,
}

impl Space {
    /// The space of a model under the given axes.
    pub fn new(blueprint: &Blueprint, axes: &[Box<dyn Axis>]) -> Self {
        let mut found: Vec<AxisSizes> = Vec::new();
        for axis in axes {
            let Some(group) = axis.groups(blueprint).into_iter().next() else { continue };
            let own = blueprint.dims.get(&group.dim).map_or(1, |dim| dim.multiple_of);
            let step =
                axis.multiple_of().unwrap_or(own).clamp(1, group.n_units.max(1)).next_multiple_of(group.n_parts.max(1));
            found.push(AxisSizes { kind: group.kind().to_owned(), full: group.n_units, step: step.min(group.n_units) });
        }
        let hidden_per_head = blueprint.hidden_follows_heads.then_some(blueprint.options.head_dim);
        if let Some(head_dim) = hidden_per_head {
            for axis in found.iter_mut().filter(|axis| axis.kind == HIDDEN) {
                axis.step = head_dim;
            }
        }
        Space { axes: found, hidden_per_head, heads_divide_hidden: blueprint.heads_divide_hidden }
    }

    /// The axis of a kind.
    ///
    /// # Errors
    /// `Recipe` listing the axes of this model.
    pub fn axis(&self, kind: &str) -> Result<&AxisSizes> {
        let find = self.axes.iter().find(|axis| axis.kind == kind);
        find.ok_or_else(|| Error::unknown("axis of this model", kind, self.axes.iter().map(|a| a.kind.as_str())))
    }

    /// Completes and checks sizes: kinds left out keep their size, except that `hidden` and `heads` follow each other
    /// where the family ties them.
    ///
    /// # Errors
    /// `Plan` naming the nearest legal sizes.
    pub fn complete(&self, wanted: &Sizes) -> Result<Sizes> {
        let mut sizes = wanted.clone();
        for (kind, &size) in wanted {
            self.axis(kind)?.check(size)?;
        }
        if let Some(head_dim) = self.hidden_per_head {
            match (wanted.get(HIDDEN), wanted.get(HEADS)) {
                (Some(hidden), None) => _ = sizes.insert(HEADS.to_owned(), hidden / head_dim),
                (None, Some(heads)) => _ = sizes.insert(HIDDEN.to_owned(), heads * head_dim),
                _ => {}
            }
        }
        for axis in &self.axes {
            let size = *sizes.entry(axis.kind.clone()).or_insert(axis.full);
            axis.check(size)?;
        }
        self.check_tie(&sizes)?;
        self.check_divides(&sizes)?;
        Ok(sizes)
    }

    fn check_tie(&self, sizes: &Sizes) -> Result<()> {
        let (Some(head_dim), Some(&hidden), Some(&heads)) = (self.hidden_per_head, sizes.get(HIDDEN), sizes.get(HEADS))
        else {
            return Ok(());
        };
        if hidden == heads * head_dim {
            return Ok(());
        }
        Err(Error::Plan(format!(
            "hidden {hidden} with {heads} heads: a config of this family has no head_dim, so hidden must be heads x \
             {head_dim}; nearest: hidden {} with {heads} heads, or {} heads with hidden {}",
            heads * head_dim,
            (hidden / head_dim).max(1),
            (hidden / head_dim).max(1) * head_dim
        )))
    }

    fn check_divides(&self, sizes: &Sizes) -> Result<()> {
        let (true, Some(&hidden), Some(&heads)) = (self.heads_divide_hidden, sizes.get(HIDDEN), sizes.get(HEADS))
        else {
            return Ok(());
        };
        if hidden.is_multiple_of(heads.max(1)) || *sizes == self.full() {
            return Ok(());
        }
        let (by_hidden, by_heads) = (self.axis(HIDDEN)?, self.axis(HEADS)?);
        let mut hiddens = by_hidden.legal();
        hiddens.retain(|hidden| hidden.is_multiple_of(heads));
        hiddens.sort_by_key(|&other| other.abs_diff(hidden));
        let mut all_heads = by_heads.legal();
        all_heads.retain(|&heads| hidden.is_multiple_of(heads));
        all_heads.sort_by_key(|&other| other.abs_diff(heads));
        hiddens.truncate(2);
        all_heads.truncate(2);
        Err(Error::Plan(format!(
            "hidden {hidden} with {heads} heads: this family's config class wants hidden to be a multiple of heads; \
             nearest: hidden {} with {heads} heads, or heads {} with hidden {hidden}",
            words(&hiddens),
            words(&all_heads)
        )))
    }

    /// The plan that keeps the best units at these sizes.
    ///
    /// # Errors
    /// `Plan` for an illegal size, `Recipe` for an axis that shrinks without scores.
    pub fn plan(&self, wanted: &Sizes, rankings: &Rankings, blueprint: &Blueprint) -> Result<Plan> {
        let sizes = self.complete(wanted)?;
        let mut plan = Plan::default();
        for dim in blueprint.dims.values() {
            let kind = split_dim(&dim.name).0;
            let Some(&size) = sizes.get(kind) else { continue };
            let kept = match rankings.by_dim.get(&dim.name) {
                Some(ranking) => ranking.best(size)?,
                None if size == dim.size => (0..size).collect(),
                None => {
                    let message = format!("`{}` is to shrink to {size}, but the scores hold nothing for it", dim.name);
                    return Err(Error::Recipe(format!("{message}; score it with a metric that covers {kind}")));
                }
            };
            plan.kept.insert(dim.name.clone(), kept);
        }
        Ok(plan)
    }

    /// Sizes of the source.
    pub fn full(&self) -> Sizes {
        self.axes.iter().map(|axis| (axis.kind.clone(), axis.full)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_legal_sizes_surround_the_wish() {
        let axis = AxisSizes { kind: "mlp".into(), full: 22, step: 4 };
        assert_eq!(axis.legal(), [4, 8, 12, 16, 20, 22]);
        assert_eq!(axis.nearest(10), [8, 12]);
        assert_eq!(axis.nearest(1), [4]);
        assert_eq!(axis.nearest(99), [22]);
        assert!(axis.check(0).is_err() && axis.check(21).is_err() && axis.check(22).is_ok());
    }
}
