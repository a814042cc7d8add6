//! Pruning in rounds of (score, prune): the sizes of each round, and the one plan that all of them
//! add up to.
//!
//! Source: arXiv 2407.14679, section 2.3 (iterative importance along a linear schedule).

use super::saved::Plan;
use super::space::Space;
use crate::spec::{
    DEPTH, EXPERTS, HEADS, KV_HEADS, ModelSpec, Sizes, dim_of_layer, dim_of_unit, split_dim,
    split_unit,
};

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
    let current = Round {
        full,
        target: &target,
        round,
        n_rounds,
        space,
    };
    let together = space.ties.together();
    let mut alone: Vec<(&String, &usize)> = target
        .iter()
        .filter(|(kind, _)| !together.contains(&kind.as_str()))
        .collect();
    alone.sort_by_key(|(kind, _)| *kind == HEADS);
    let mut sizes = Sizes::new();
    for (kind, &last) in alone {
        let nearest = current.options(kind, last, &sizes).into_iter().next();
        sizes.extend(nearest.map(|size| (kind.clone(), size)));
    }
    let mut choices: Vec<(&str, Vec<usize>)> = Vec::new();
    for kind in together {
        if let Some(&last) = target.get(kind) {
            choices.push((kind, current.options(kind, last, &sizes)));
        }
    }
    nearest_together(&choices, &sizes, space).unwrap_or(target)
}

/// One round on the way from the full sizes to the target.
struct Round<'a> {
    full: &'a Sizes,
    target: &'a Sizes,
    round: usize,
    n_rounds: usize,
    space: &'a Space,
}

impl Round<'_> {
    /// Legal sizes of a kind, nearest to this round's wish first.
    fn options(&self, kind: &str, last: usize, beside: &Sizes) -> Vec<usize> {
        let (least, wish) = self.goal(kind, last, beside);
        nearest(self.space, kind, least, wish, beside)
    }

    /// The least legal size of a kind beside others, and the wish.
    fn goal(&self, kind: &str, last: usize, beside: &Sizes) -> (usize, f64) {
        let per_kv_head = (heads_per_kv_head(self.full), heads_per_kv_head(self.target));
        if let (Some(first), Some(last)) = per_kv_head
            && kind == HEADS
        {
            let kv_heads = beside.get(KV_HEADS).copied().unwrap_or(1) as f64;
            let least = (last * kv_heads).round() as usize;
            return (least, self.between(first, last) * kv_heads);
        }
        let full = self.full.get(kind).copied().unwrap_or(last);
        (last, self.between(full as f64, last as f64))
    }

    fn between(&self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.round as f64 / self.n_rounds as f64
    }
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
    legal.sort_by(|&a, &b| {
        distance(a, wish)
            .total_cmp(&distance(b, wish))
            .then(b.cmp(&a))
    });
    legal
}

fn distance(size: usize, wish: f64) -> f64 {
    (size as f64 - wish).abs()
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
        let mut longer = Vec::new();
        for before in &places {
            longer.extend((0..legal.len()).map(|place| [before.as_slice(), &[place]].concat()));
        }
        places = longer;
    }
    places.sort_by_key(|places| places.iter().sum::<usize>());
    places.into_iter().find_map(|places| {
        let mut sizes = beside.clone();
        for ((kind, legal), place) in choices.iter().zip(places) {
            sizes.insert((*kind).to_owned(), *legal.get(place)?);
        }
        space.settle(&sizes).ok()
    })
}

impl Plan {
    /// A plan on the student of this one, back in the source's numbering: pruning by both in turn
    /// is pruning by the result.
    ///
    /// `spec` is the source's. The entry of a layer that this plan drops has no effect; it takes
    /// the units of the student's first layer, so that its length is that of the others.
    #[must_use]
    pub fn compose(&self, later: &Plan, spec: &ModelSpec) -> Plan {
        let depth = self.units(DEPTH, spec);
        let later_kinds: Vec<&str> = later.kept.keys().map(|name| split_dim(name).0).collect();
        let mut composed = Plan::default();
        for name in spec.dims.keys() {
            if !self.kept.contains_key(name) && !later_kinds.contains(&split_dim(name).0) {
                continue;
            }
            let own = self.units(name, spec);
            let kept = match self.later_units(later, name, &depth, spec) {
                Some(of_student) => of_student
                    .iter()
                    .filter_map(|&unit| own.get(unit))
                    .copied()
                    .collect(),
                None => own,
            };
            composed.kept.insert(name.clone(), kept);
        }
        composed
    }

    /// What stays of a dim: all of it where the plan does not say.
    fn units(&self, name: &str, spec: &ModelSpec) -> Vec<usize> {
        match self.kept.get(name) {
            Some(kept) => kept.clone(),
            None => (0..spec.dims.get(name).map_or(0, |dim| dim.size)).collect(),
        }
    }

    /// What the student calls a dim; none where its layer or its expert goes.
    fn name_in_student(&self, name: &str, depth: &[usize], spec: &ModelSpec) -> Option<String> {
        let (kind, Some(layer), unit) = split_unit(name) else {
            return Some(name.to_owned());
        };
        let place = depth.iter().position(|&kept| kept == layer)?;
        let Some(unit) = unit else {
            return Some(dim_of_layer(kind, place));
        };
        let experts = self.units(&dim_of_layer(EXPERTS, layer), spec);
        let unit = experts.iter().position(|&kept| kept == unit)?;
        Some(dim_of_unit(kind, place, unit))
    }

    /// What the later plan keeps of a dim of the source, in the student's numbering.
    fn later_units<'a>(
        &self,
        later: &'a Plan,
        name: &str,
        depth: &[usize],
        spec: &ModelSpec,
    ) -> Option<&'a Vec<usize>> {
        let found = |name: &str| match self.name_in_student(name, depth, spec) {
            Some(name) => later.kept.get(&name),
            // Its layer or its expert goes: its units are as many as those of the others that
            // stay, whichever they are.
            None => {
                let kind = split_dim(name).0;
                let mut all = later.kept.iter();
                all.find(|(other, _)| split_dim(other).0 == kind)
                    .map(|(_, units)| units)
            }
        };
        if let Some(units) = found(name) {
            return Some(units);
        }
        // With one query head for each key/value head, a student has no groups: its heads are both.
        let carried = spec.carried_by(name)?;
        let n_queries = self.kept.get(&carried.name)?.len();
        let full = spec.dims.get(name)?.size;
        if self.kept.get(name).map_or(full, Vec::len) != n_queries {
            return None;
        }
        found(&carried.name)
    }
}
