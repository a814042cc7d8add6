//! Pruning in rounds of (score, prune): the sizes of each round, and the one plan that all of them add up to.
//!
//! Source: arXiv 2407.14679, section 2.3 (iterative importance along a linear schedule).

use super::saved::Plan;
use super::space::Space;
use crate::blueprint::{Blueprint, DEPTH, HEADS, HIDDEN, KV_HEADS, Sizes, dim_of_layer, split_dim};

/// The sizes to prune to in a round, counted from 1: full + (target − full) x round / n_rounds on each axis, rounded to the
/// nearest legal size between target and full, the larger of two as near. The last round is the target.
///
/// Query heads are rounded as heads per key/value head, so that no round leaves fewer of them than a later one needs. Where
/// `hidden` and `heads` are tied, the nearest pair that the family allows is taken.
pub fn schedule(full: &Sizes, target: &Sizes, round: usize, n_rounds: usize, space: &Space) -> Sizes {
    let target = space.complete(target).unwrap_or_else(|_| target.clone());
    if round >= n_rounds {
        return target;
    }
    let between = |from: f64, to: f64| from + (to - from) * round as f64 / n_rounds as f64;
    let wish = |kind: &str, last: usize| between(full.get(kind).copied().unwrap_or(last) as f64, last as f64);
    let mut sizes = Sizes::new();
    for (kind, &last) in target.iter().filter(|(kind, _)| ![HEADS, HIDDEN].contains(&kind.as_str())) {
        let nearest = nearest(space, kind, last, wish(kind, last), &sizes).into_iter().next();
        sizes.extend(nearest.map(|size| (kind.clone(), size)));
    }
    let hidden = target.get(HIDDEN).map(|&last| (last, wish(HIDDEN, last)));
    let kv_heads = sizes.get(KV_HEADS).copied().unwrap_or(1) as f64;
    let heads = heads_per_kv_head(&target).map(|last| {
        let wish = between(heads_per_kv_head(full).unwrap_or(last), last);
        ((last * kv_heads).round() as usize, wish * kv_heads)
    });
    let options = |kind: &str, of: Option<(usize, f64)>| match of {
        Some((least, wish)) => nearest(space, kind, least, wish, &sizes).into_iter().map(Some).collect(),
        None => vec![None],
    };
    nearest_pair(&options(HIDDEN, hidden), &options(HEADS, heads), &sizes, space).unwrap_or(target)
}

fn heads_per_kv_head(sizes: &Sizes) -> Option<f64> {
    let kv_heads = sizes.get(KV_HEADS).copied().unwrap_or(1).max(1);
    sizes.get(HEADS).map(|&heads| heads as f64 / kv_heads as f64)
}

/// Legal sizes from `least` on, nearest to the wish first, the larger of two as near.
fn nearest(space: &Space, kind: &str, least: usize, wish: f64, beside: &Sizes) -> Vec<usize> {
    let mut legal = space.axis_beside(kind, beside).map(|axis| axis.legal()).unwrap_or_default();
    legal.retain(|&size| size >= least);
    let distance = |size: usize| (size as f64 - wish).abs();
    legal.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(b.cmp(&a)));
    legal
}

/// The first pair, by the sum of both places, that the family allows beside the other sizes.
fn nearest_pair(hiddens: &[Option<usize>], heads: &[Option<usize>], beside: &Sizes, space: &Space) -> Option<Sizes> {
    let mut pairs: Vec<(usize, usize)> =
        (0..hiddens.len()).flat_map(|hidden| (0..heads.len()).map(move |head| (hidden, head))).collect();
    pairs.sort_by_key(|(hidden, head)| hidden + head);
    let with = |(hidden, head): (usize, usize)| {
        let mut sizes = beside.clone();
        sizes.extend(hiddens[hidden].map(|size| (HIDDEN.to_owned(), size)));
        sizes.extend(heads[head].map(|size| (HEADS.to_owned(), size)));
        space.settle(&sizes).ok()
    };
    pairs.into_iter().find_map(with)
}

impl Plan {
    /// A plan on the student of this one, back in the source's numbering: pruning by both in turn is pruning by the result.
    ///
    /// `blueprint` is the source's. The entry of a layer that this plan drops has no effect; it takes the units of the
    /// student's first layer, so that its length is that of the others.
    #[must_use]
    pub fn compose(&self, later: &Plan, blueprint: &Blueprint) -> Plan {
        let whole = |name: &str| (0..blueprint.dims.get(name).map_or(0, |dim| dim.size)).collect::<Vec<usize>>();
        let units = |name: &str| self.kept.get(name).cloned().unwrap_or_else(|| whole(name));
        let depth = units(DEPTH);
        let names = blueprint.dims.keys().filter(|name| {
            let kind = split_dim(name).0;
            let is_kind = |other: &&String| split_dim(other).0 == kind;
            self.kept.contains_key(*name) || later.kept.keys().any(|other| is_kind(&other))
        });
        let composed = |name: &String| {
            let own = units(name);
            match self.later_units(later, name, &depth, blueprint) {
                Some(of_student) => of_student.iter().filter_map(|&unit| own.get(unit)).copied().collect(),
                None => own,
            }
        };
        Plan { kept: names.map(|name| (name.clone(), composed(name))).collect() }
    }

    /// What the later plan keeps of a dim of the source, in the student's numbering.
    fn later_units<'a>(
        &self,
        later: &'a Plan,
        name: &str,
        depth: &[usize],
        blueprint: &Blueprint,
    ) -> Option<&'a Vec<usize>> {
        let (kind, layer) = split_dim(name);
        let in_student = |kind: &str| match layer {
            None => kind.to_owned(),
            Some(layer) => dim_of_layer(kind, depth.iter().position(|&kept| kept == layer).unwrap_or(0)),
        };
        // With one query head for each key/value head, a student has no groups: its heads are both.
        let ungrouped = || {
            let carried = blueprint.carried_by(name)?;
            let n_queries = self.kept.get(&carried.name)?.len();
            let is_one_each = self.kept.get(name).map_or(blueprint.dims.get(name)?.size, Vec::len) == n_queries;
            is_one_each.then(|| later.kept.get(&in_student(split_dim(&carried.name).0)))?
        };
        later.kept.get(&in_student(kind)).or_else(ungrouped)
    }
}
