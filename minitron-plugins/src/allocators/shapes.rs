//! The grid of legal shapes near a number of parameters, most balanced first.

use minitron_core::blueprint::{Blueprint, DEPTH, HEADS, HIDDEN, MLP, Sizes, dim_of_layer};
use minitron_core::error::{Error, Result};
use minitron_core::plan::{AxisSizes, Rankings, Space};

/// What a shape has to meet.
#[derive(Debug)]
pub(super) struct Goal<'a> {
    pub n_params: u64,
    pub tolerance: f64,
    pub non_embedding: bool,
    pub hold: &'a Sizes,
    pub free: &'a [String],
}

/// Sizes tried along an axis other than the MLP's; more are thinned out evenly.
const MAX_PER_AXIS: usize = 128;

#[derive(Debug)]
struct Shape {
    sizes: Sizes,
    n_params: u64,
    imbalance: f64,
}

/// The shapes within the tolerance, most balanced first: the sum over free axes of (log kept share − their mean)², plus
/// the squared log deviation from the target.
///
/// The MLP's width is solved for, since the count is linear in it; the other axes are enumerated.
///
/// # Errors
/// `Plan` naming the nearest count that can be reached.
pub(super) fn best_shapes(
    goal: &Goal,
    space: &Space,
    rankings: &Rankings,
    blueprint: &Blueprint,
    n_best: usize,
) -> Result<Vec<Sizes>> {
    let free = free_axes(goal, space, rankings)?;
    let held = Sizes::from_iter(goal.hold.iter().map(|(kind, &size)| (kind.clone(), size)));
    let (solved, enumerated): (Vec<&AxisSizes>, Vec<&AxisSizes>) = free.iter().partition(|axis| axis.kind == MLP);
    let count = |sizes: &Sizes| match goal.non_embedding {
        true => blueprint.n_non_embedding_at(sizes),
        false => blueprint.n_params_at(sizes),
    };
    let mut shapes = Vec::new();
    for mut sizes in combinations(&enumerated, &held) {
        follow_tie(&mut sizes, goal.hold, space);
        for sizes in with_mlp(sizes, solved.first().copied(), goal.n_params, &count) {
            let Ok(sizes) = space.complete(&sizes) else { continue };
            if goal.hold.iter().any(|(kind, held)| sizes.get(kind) != Some(held)) {
                continue;
            }
            let n_params = count(&sizes);
            let imbalance = imbalance(&sizes, &free, n_params, goal.n_params);
            shapes.push(Shape { sizes, n_params, imbalance });
        }
    }
    let deviation = |shape: &Shape| (shape.n_params as f64 / goal.n_params.max(1) as f64 - 1.0).abs();
    let nearest = shapes.iter().min_by(|a, b| deviation(a).total_cmp(&deviation(b)));
    let Some(nearest) = nearest else { return Err(Error::Plan("no legal shape holds the sizes given".into())) };
    if deviation(nearest) > goal.tolerance {
        return Err(Error::Plan(format!(
            "{} parameters within {:.1} % cannot be reached; nearest: {} ({}); widen the tolerance or free another axis",
            goal.n_params,
            goal.tolerance * 100.0,
            nearest.n_params,
            words(&nearest.sizes)
        )));
    }
    shapes.retain(|shape| deviation(shape) <= goal.tolerance);
    shapes.sort_by(|a, b| a.imbalance.total_cmp(&b.imbalance).then_with(|| a.sizes.cmp(&b.sizes)));
    Ok(shapes.into_iter().take(n_best.max(1)).map(|shape| shape.sizes).collect())
}

fn free_axes(goal: &Goal, space: &Space, rankings: &Rankings) -> Result<Vec<AxisSizes>> {
    for kind in goal.free {
        space.axis(kind)?;
    }
    for (kind, &size) in goal.hold {
        space.axis(kind)?.check(size)?;
    }
    let scored =
        |kind: &str| rankings.by_dim.contains_key(kind) || rankings.by_dim.contains_key(&dim_of_layer(kind, 0));
    let may_shrink = |axis: &&AxisSizes| match goal.free {
        [] => axis.kind != DEPTH && scored(&axis.kind),
        named => named.contains(&axis.kind),
    };
    Ok(space.axes.iter().filter(|axis| !goal.hold.contains_key(&axis.kind)).filter(may_shrink).cloned().collect())
}

/// Every combination of legal sizes, added to the held ones.
fn combinations(axes: &[&AxisSizes], held: &Sizes) -> Vec<Sizes> {
    axes.iter().fold(vec![held.clone()], |shapes, axis| {
        let legal = axis.legal();
        let stride = legal.len().div_ceil(MAX_PER_AXIS).max(1);
        let sizes: Vec<usize> = legal.iter().rev().step_by(stride).copied().collect();
        let with = |shape: &Sizes, size: usize| {
            let mut shape = shape.clone();
            shape.insert(axis.kind.clone(), size);
            shape
        };
        shapes.iter().flat_map(|shape| sizes.iter().map(|&size| with(shape, size)).collect::<Vec<_>>()).collect()
    })
}

/// Where hidden = heads x head_dim, a combination that does not keep it is of no use: the one follows the other, heads a
/// hidden width that is held.
fn follow_tie(sizes: &mut Sizes, hold: &Sizes, space: &Space) {
    let Some(head_dim) = space.hidden_per_head else { return };
    if let Some(&hidden) = hold.get(HIDDEN) {
        sizes.insert(HEADS.to_owned(), hidden / head_dim);
    } else if let Some(&heads) = sizes.get(HEADS) {
        sizes.insert(HIDDEN.to_owned(), heads * head_dim);
    }
}

/// The legal MLP widths on both sides of the one that meets the target.
fn with_mlp(sizes: Sizes, mlp: Option<&AxisSizes>, target: u64, count: &dyn Fn(&Sizes) -> u64) -> Vec<Sizes> {
    let Some(axis) = mlp else { return vec![sizes] };
    let at = |size: usize| {
        let mut sizes = sizes.clone();
        sizes.insert(MLP.to_owned(), size);
        sizes
    };
    let (none, full) = (count(&at(0)) as f64, count(&at(axis.full)) as f64);
    let slope = (full - none) / axis.full.max(1) as f64;
    let exact = ((target as f64 - none) / slope.max(1e-9)).clamp(1.0, axis.full as f64);
    axis.nearest(exact.round() as usize).into_iter().map(at).collect()
}

fn imbalance(sizes: &Sizes, free: &[AxisSizes], n_params: u64, target: u64) -> f64 {
    let shares: Vec<f64> =
        free.iter().filter_map(|axis| Some((*sizes.get(&axis.kind)? as f64 / axis.full.max(1) as f64).ln())).collect();
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let spread: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    spread + (n_params as f64 / target.max(1) as f64).ln().powi(2)
}

fn words(sizes: &Sizes) -> String {
    sizes.iter().map(|(kind, size)| format!("{kind} {size}")).collect::<Vec<_>>().join(", ")
}
