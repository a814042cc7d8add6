//! The grid of legal shapes near a cost, most balanced first.

use minitron_core::error::{Error, Result};
use minitron_core::mixers::MAMBA_HEAD_DIM;
use minitron_core::plan::{AxisSizes, Plan, Rankings, Space, flags};
use minitron_core::spec::{
    DEPTH, EXPERT_MLP, KV_HEADS, MLP, ModelSpec, ROPE_PAIRS, Sizes, split_dim,
};

/// What a shape has to meet.
pub(super) struct Goal<'a> {
    /// What a shape costs: never falls with a size, and is linear in the width of MLPs and of
    /// experts.
    pub cost: &'a dyn Fn(&Sizes) -> u64,
    /// What costs are counted in, for messages.
    pub unit: &'a str,
    pub target: u64,
    /// Largest relative deviation.
    pub tolerance: f64,
    /// Never above the target; below the tolerance only where nothing lies within it.
    pub is_ceiling: bool,
    pub hold: &'a Sizes,
    pub free: &'a [String],
}

/// Axes that only shrink where they are held or freed by name: at one size, width pruning keeps
/// more than dropping layers (arXiv 2407.14679, best practice 4), key/value heads stay under
/// grouped queries, and heads keep their width.
const ON_REQUEST: [&str; 4] = [DEPTH, KV_HEADS, ROPE_PAIRS, MAMBA_HEAD_DIM];

/// Sizes tried along an axis other than the MLP's; more are thinned out evenly.
const MAX_PER_AXIS: usize = 128;

#[derive(Debug)]
struct SizedShape {
    sizes: Sizes,
    cost: u64,
    imbalance: f64,
}

/// Plans of the best shapes.
///
/// # Errors
/// As [`best_shapes`], and where an axis that shrinks has no scores.
pub(super) fn plans(
    goal: &Goal,
    space: &Space,
    rankings: &Rankings,
    spec: &ModelSpec,
    n_plans: usize,
) -> Result<Vec<Plan>> {
    let shapes = best_shapes(goal, space, rankings, n_plans)?;
    shapes
        .iter()
        .map(|sizes| space.plan(sizes, rankings, spec))
        .collect()
}

/// The shapes within the tolerance, most balanced first: the sum over free axes of (log kept share
/// − their mean)², plus the squared log deviation from the target.
///
/// The MLP's width, or that of experts, is solved for, since the cost is linear in it; the other
/// axes are enumerated.
///
/// # Errors
/// `Plan` naming the nearest cost that can be reached.
fn best_shapes(
    goal: &Goal,
    space: &Space,
    rankings: &Rankings,
    n_best: usize,
) -> Result<Vec<Sizes>> {
    let free = free_axes(goal, space, rankings)?;
    let mut shapes = legal_shapes(goal, space, &free);
    let Some(nearest) = shapes
        .iter()
        .min_by(|a, b| goal.deviation(a).total_cmp(&goal.deviation(b)))
    else {
        return Err(Error::Plan("no legal shape holds the sizes given".into()));
    };
    if goal.is_ceiling && nearest.cost > goal.target
        || !goal.is_ceiling && goal.deviation(nearest) > goal.tolerance
    {
        return Err(goal.unreachable(nearest));
    }
    let tolerance = goal.tolerance.max(goal.deviation(nearest)).min(1.0);
    shapes.retain(|shape| goal.deviation(shape) <= tolerance);
    shapes.sort_by(|a, b| {
        a.imbalance
            .total_cmp(&b.imbalance)
            .then_with(|| a.sizes.cmp(&b.sizes))
    });
    Ok(shapes
        .into_iter()
        .take(n_best.max(1))
        .map(|shape| shape.sizes)
        .collect())
}

/// Around every combination of the enumerated axes, the shapes that the family allows and the held
/// sizes agree with.
fn legal_shapes(goal: &Goal, space: &Space, free: &[AxisSizes]) -> Vec<SizedShape> {
    // Of experts the width is solved for: they hold most of what there is.
    let has = |kind: &str| free.iter().any(|axis| axis.kind == kind);
    let solved = if has(EXPERT_MLP) { EXPERT_MLP } else { MLP };
    let (solved, mut enumerated): (Vec<&AxisSizes>, Vec<&AxisSizes>) =
        free.iter().partition(|axis| axis.kind == solved);
    enumerated.retain(|axis| {
        !space
            .ties
            .is_decided(&axis.kind, &|kind| goal.hold.contains_key(kind), &|kind| {
                free.iter().any(|axis| axis.kind == kind)
            })
    });
    let mut shapes = Vec::new();
    for mut sizes in combinations(&enumerated, goal.hold, space) {
        space.ties.follow(&mut sizes);
        for sizes in with_mlp(sizes, solved.first().copied(), goal) {
            let Ok(sizes) = space.settle(&sizes) else {
                continue;
            };
            let mut held = goal.hold.iter();
            if held.all(|(kind, held)| sizes.get(kind) == Some(held)) {
                let cost = (goal.cost)(&sizes);
                let imbalance = imbalance(&sizes, free, cost, goal.target);
                shapes.push(SizedShape {
                    sizes,
                    cost,
                    imbalance,
                });
            }
        }
    }
    shapes
}

impl Goal<'_> {
    /// Relative; what breaks a ceiling is farther than anything below it.
    fn deviation(&self, shape: &SizedShape) -> f64 {
        let relative = shape.cost as f64 / self.target.max(1) as f64 - 1.0;
        if self.is_ceiling && relative > 0.0 {
            1.0 + relative
        } else {
            relative.abs()
        }
    }

    fn unreachable(&self, nearest: &SizedShape) -> Error {
        let (target, unit) = (self.target, self.unit);
        let wanted = match self.is_ceiling {
            true => format!("at most {target} {unit}"),
            false => format!("{target} {unit} within {:.1} %", self.tolerance * 100.0),
        };
        let next = if self.is_ceiling {
            "allow more"
        } else {
            "widen the tolerance"
        };
        Error::Plan(format!(
            "{wanted} cannot be reached; nearest: {} ({}); type those sizes, {next} or free \
             another axis",
            nearest.cost,
            flags(&nearest.sizes)
        ))
    }
}

fn free_axes(goal: &Goal, space: &Space, rankings: &Rankings) -> Result<Vec<AxisSizes>> {
    for kind in goal.free {
        space.axis(kind)?;
    }
    for (kind, &size) in goal.hold {
        space.axis_beside(kind, goal.hold)?.check(size)?;
    }
    let free = space
        .axes
        .iter()
        .filter(|axis| !goal.hold.contains_key(&axis.kind))
        .filter(|axis| may_shrink(&axis.kind, goal, rankings));
    Ok(free.cloned().collect())
}

fn may_shrink(kind: &str, goal: &Goal, rankings: &Rankings) -> bool {
    match goal.free {
        // Where layers of the source differ, each keeps its size unless it is named.
        [] => !ON_REQUEST.contains(&kind) && split_dim(kind).1.is_none() && rankings.covers(kind),
        named => named.iter().any(|free| free == kind),
    }
}

/// Every combination of legal sizes, added to the held ones. Key/value heads first: they say which
/// query heads are legal.
fn combinations(axes: &[&AxisSizes], held: &Sizes, space: &Space) -> Vec<Sizes> {
    let mut axes = axes.to_vec();
    axes.sort_by_key(|axis| axis.kind != KV_HEADS);
    let mut shapes = vec![held.clone()];
    for AxisSizes { kind, .. } in axes {
        let mut with_axis = Vec::new();
        for shape in &shapes {
            let legal = space
                .axis_beside(kind, shape)
                .map(|axis| axis.legal())
                .unwrap_or_default();
            let stride = legal.len().div_ceil(MAX_PER_AXIS).max(1);
            for &size in legal.iter().rev().step_by(stride) {
                with_axis.push(with_size(shape, kind, size));
            }
        }
        shapes = with_axis;
    }
    shapes
}

fn with_size(shape: &Sizes, kind: &str, size: usize) -> Sizes {
    let mut shape = shape.clone();
    shape.insert(kind.to_owned(), size);
    shape
}

/// The legal MLP widths on both sides of the one that meets the target.
fn with_mlp(sizes: Sizes, mlp: Option<&AxisSizes>, goal: &Goal) -> Vec<Sizes> {
    let Some(axis) = mlp else { return vec![sizes] };
    let none = (goal.cost)(&with_size(&sizes, &axis.kind, 0)) as f64;
    let full = (goal.cost)(&with_size(&sizes, &axis.kind, axis.full)) as f64;
    let slope = (full - none) / axis.full.max(1) as f64;
    let exact = ((goal.target as f64 - none) / slope.max(1e-9)).clamp(1.0, axis.full as f64);
    axis.nearest(exact.round() as usize)
        .into_iter()
        .map(|width| with_size(&sizes, &axis.kind, width))
        .collect()
}

fn imbalance(sizes: &Sizes, free: &[AxisSizes], cost: u64, target: u64) -> f64 {
    let shares: Vec<f64> = free
        .iter()
        .filter_map(|axis| Some((*sizes.get(&axis.kind)? as f64 / axis.full.max(1) as f64).ln()))
        .collect();
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let spread: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    spread + (cost as f64 / target.max(1) as f64).ln().powi(2)
}
