//! Pruning in rounds of (score, prune): the sizes of each round, and the one plan that all of them
//! add up to.
//!
//! Source: arXiv 2407.14679, section 2.3 (iterative importance along a linear schedule).

use super::saved::Plan;
use super::space::Space;
use crate::spec::{DEPTH, HEADS, KV_HEADS, ModelSpec, Sizes, dim_of_layer, split_dim};

/// The sizes to prune to in a round, counted from 1: full + (target − full) x round / n_rounds on
/// each axis, rounded to the nearest legal size between target and full, the larger of two as near.
/// The last round is the target.
///
/// Query heads are rounded as heads per key/value head, so that no round leaves fewer of them than
/// a later one needs. Of kinds that are tied, the nearest sizes that the family allows together are
/// taken.
pub fn schedule(
    full: &Sizes,
    target: &Sizes,
    round: usize,
    n_rounds: usize,
    space: &Space,
) -> Sizes {
    let target = space.complete(target).unwrap_or_else(|_| target.clone());
    if round >= n_rounds {
        return target;
    }
    let between = |from: f64, to: f64| from + (to - from) * round as f64 / n_rounds as f64;
    // The least legal size of a kind beside others, and the wish.
    let goal = |kind: &str, last: usize, beside: &Sizes| {
        let kv_heads = beside.get(KV_HEADS).copied().unwrap_or(1) as f64;
        match (heads_per_kv_head(full), heads_per_kv_head(&target)) {
            (Some(first), Some(last)) if kind == HEADS => (
                (last * kv_heads).round() as usize,
                between(first, last) * kv_heads,
            ),
            _ => (
                last,
                between(full.get(kind).copied().unwrap_or(last) as f64, last as f64),
            ),
        }
    };
    let options = |kind: &str, last: usize, beside: &Sizes| {
        let (least, wish) = goal(kind, last, beside);
        nearest(space, kind, least, wish, beside)
    };
    let together = space.ties.together();
    let mut alone: Vec<(&String, &usize)> = target
        .iter()
        .filter(|(kind, _)| !together.contains(&kind.as_str()))
        .collect();
    alone.sort_by_key(|(kind, _)| *kind == HEADS);
    let mut sizes = Sizes::new();
    for (kind, &last) in alone {
        let nearest = options(kind, last, &sizes).into_iter().next();
        sizes.extend(nearest.map(|size| (kind.clone(), size)));
    }
    let tied = together
        .into_iter()
        .filter_map(|kind| target.get(kind).map(|&last| (kind, last)));
    let choices: Vec<(&str, Vec<usize>)> = tied
        .map(|(kind, last)| (kind, options(kind, last, &sizes)))
        .collect();
    nearest_together(&choices, &sizes, space).unwrap_or(target)
}

fn heads_per_kv_head(sizes: &Sizes) -> Option<f64> {
    let kv_heads = sizes.get(KV_HEADS).copied().unwrap_or(1).max(1);
    sizes
        .get(HEADS)
        .map(|&heads| heads as f64 / kv_heads as f64)
}

/// Legal sizes from `least` on, nearest to the wish first, the larger of two as near.
fn nearest(space: &Space, kind: &str, least: usize, wish: f64, beside: &Sizes) -> Vec<usize> {
    let mut legal = space
        .axis_beside(kind, beside)
        .map(|axis| axis.legal())
        .unwrap_or_default();
    legal.retain(|&size| size >= least);
    let distance = |size: usize| (size as f64 - wish).abs();
    legal.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(b.cmp(&a)));
    legal
}

/// The first choice, by the sum of the places of its sizes, that the family allows beside the other
/// sizes.
fn nearest_together(
    choices: &[(&str, Vec<usize>)],
    beside: &Sizes,
    space: &Space,
) -> Option<Sizes> {
    let mut places: Vec<Vec<usize>> = vec![Vec::new()];
    for (_, legal) in choices {
        let with = |before: Vec<usize>| {
            (0..legal.len()).map(move |place| [before.as_slice(), &[place]].concat())
        };
        places = places.into_iter().flat_map(with).collect();
    }
    places.sort_by_key(|places| places.iter().sum::<usize>());
    let settled = |places: Vec<usize>| {
        let mut sizes = beside.clone();
        for ((kind, legal), place) in choices.iter().zip(places) {
            sizes.insert((*kind).to_owned(), *legal.get(place)?);
        }
        space.settle(&sizes).ok()
    };
    places.into_iter().find_map(settled)
}

impl Plan {
    /// A plan on the student of this one, back in the source's numbering: pruning by both in turn
    /// is pruning by the result.
    ///
    /// `spec` is the source's. The entry of a layer that this plan drops has no effect; it takes
    /// the units of the student's first layer, so that its length is that of the others.
    #[must_use]
    pub fn compose(&self, later: &Plan, spec: &ModelSpec) -> Plan {
        let whole =
            |name: &str| (0..spec.dims.get(name).map_or(0, |dim| dim.size)).collect::<Vec<usize>>();
        let units = |name: &str| self.kept.get(name).cloned().unwrap_or_else(|| whole(name));
        let depth = units(DEPTH);
        let names = spec.dims.keys().filter(|name| {
            let kind = split_dim(name).0;
            let is_kind = |other: &&String| split_dim(other).0 == kind;
            self.kept.contains_key(*name) || later.kept.keys().any(|other| is_kind(&other))
        });
        let composed = |name: &String| {
            let own = units(name);
            match self.later_units(later, name, &depth, spec) {
                Some(of_student) => of_student
                    .iter()
                    .filter_map(|&unit| own.get(unit))
                    .copied()
                    .collect(),
                None => own,
            }
        };
        Plan {
            kept: names.map(|name| (name.clone(), composed(name))).collect(),
        }
    }

    /// What the later plan keeps of a dim of the source, in the student's numbering.
    fn later_units<'a>(
        &self,
        later: &'a Plan,
        name: &str,
        depth: &[usize],
        spec: &ModelSpec,
    ) -> Option<&'a Vec<usize>> {
        let (kind, layer) = split_dim(name);
        // Absent where the layer goes: its units are as many as those of the layers that stay,
        // whichever they are.
        let place = layer.map(|layer| depth.iter().position(|&kept| kept == layer).unwrap_or(0));
        let in_student =
            |kind: &str| place.map_or(kind.to_owned(), |place| dim_of_layer(kind, place));
        // With one query head for each key/value head, a student has no groups: its heads are both.
        let ungrouped = || {
            let carried = spec.carried_by(name)?;
            let n_queries = self.kept.get(&carried.name)?.len();
            let is_one_each = self
                .kept
                .get(name)
                .map_or(spec.dims.get(name)?.size, Vec::len)
                == n_queries;
            is_one_each.then(|| later.kept.get(&in_student(split_dim(&carried.name).0)))?
        };
        later.kept.get(&in_student(kind)).or_else(ungrouped)
    }
}
