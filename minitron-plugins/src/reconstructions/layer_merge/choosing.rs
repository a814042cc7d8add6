//! Which units of several layers stay.

use std::collections::BTreeMap;

use minitron_core::reconstruct::Replaced;

/// Units that stay, and what they are worth together.
pub(super) struct Best<T> {
    pub worth: f64,
    pub units: T,
}

/// Which places of a layer's own units go to units of which others: of all of them the best stay,
/// as many as there are places; of equals the layer's own.
pub(super) fn best(own: &[f64], others: &[(usize, Vec<f64>)]) -> Best<Vec<(usize, Replaced)>> {
    let of_own = own.iter().map(|&worth| (worth, None));
    let of_others = others.iter().flat_map(|(layer, worth)| {
        let units = worth.iter().enumerate();
        units.map(move |(unit, &worth)| (worth, Some((*layer, unit))))
    });
    let all: Vec<(f64, Option<(usize, usize)>)> = of_own.chain(of_others).collect();
    let worth: Vec<f64> = all.iter().map(|(worth, _)| *worth).collect();
    let mut of_best = 0.0;
    let (mut free, mut stays) = ((0..own.len()).collect::<Vec<_>>(), BTreeMap::new());
    for at in ranked(&worth).into_iter().take(own.len()) {
        of_best += worth.get(at).copied().unwrap_or(0.0);
        match all.get(at).and_then(|(_, from)| *from) {
            None => free.retain(|&place| place != at),
            Some((layer, unit)) => stays.entry(layer).or_insert_with(Vec::new).push(unit),
        }
    }
    let mut free = free.into_iter();
    let replaced = stays.into_iter().map(|(layer, mut units)| {
        units.sort_unstable();
        let places = free.by_ref().take(units.len()).collect();
        (layer, Replaced { places, units })
    });
    Best {
        worth: of_best,
        units: replaced.collect(),
    }
}

/// Best first; of equals the first.
pub(super) fn ranked(worth: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..worth.len()).collect();
    let of = |unit: usize| worth.get(unit).copied().unwrap_or(0.0);
    order.sort_by(|&a, &b| of(b).total_cmp(&of(a)));
    order
}

pub(super) fn of_kept(worth: &[f64], kept: &[usize]) -> Vec<f64> {
    let kept = kept.iter().filter_map(|&unit| worth.get(unit).copied());
    kept.collect()
}
