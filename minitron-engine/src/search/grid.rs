//! Every point of a grid of sizes, and which of them are worth a look.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::cost::{CountPolynomial, position};
use minitron_core::error::{Error, Result};
use minitron_core::mixers::MAMBA_HEAD_DIM;
use minitron_core::plan::{Led, Space};
use minitron_core::spec::{HIDDEN, MLP, ModelSpec, ROPE_PAIRS, Sizes};

/// One direction of a grid.
#[derive(Debug, Clone, PartialEq)]
pub enum GridAxis {
    /// Sizes of a kind: `heads` of 24, 32, 48.
    Sizes(String, Vec<usize>),
    /// Widths of the MLP as multiples of the hidden width: 2.5, 3, 3.5, 4 (arXiv 2407.14679,
    /// appendix).
    MlpFactors(Vec<f64>),
}

impl GridAxis {
    fn len(&self) -> usize {
        match self {
            GridAxis::Sizes(_, sizes) => sizes.len(),
            GridAxis::MlpFactors(factors) => factors.len(),
        }
    }

    fn kind(&self) -> &str {
        match self {
            GridAxis::Sizes(kind, _) => kind,
            GridAxis::MlpFactors(_) => MLP,
        }
    }
}

/// More would take hours to count.
const MAX_POINTS: u64 = 1 << 34;
/// Shapes within a budget that are looked at: memory for a few million.
const MAX_WITHIN: usize = 1 << 22;

/// A grid of sizes; kinds that no axis names keep their size.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    axes: Vec<GridAxis>,
}

/// What a candidate may measure: parameters, or bytes where a parameter and a token have some.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Within {
    /// Least.
    pub least: u64,
    /// Most.
    pub most: u64,
}

impl Within {
    /// So much, give or take a share of it.
    pub fn around(target: u64, tolerance: f64) -> Self {
        let share = target as f64 * tolerance;
        Within {
            least: (target as f64 - share).ceil() as u64,
            most: (target as f64 + share).floor() as u64,
        }
    }

    /// Whether a cost lies in between, ends included.
    pub fn holds(&self, cost: u64) -> bool {
        (self.least..=self.most).contains(&cost)
    }
}

/// Whether a shape of so many parameters is let through.
pub type Keep<'a> = &'a dyn Fn(&Sizes, u64) -> Result<bool>;

/// A shape that is worth a look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// By kind, or by dim where layers differ.
    pub sizes: Sizes,
    /// The layers that stay, where that is not for rankings to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Parameters.
    pub n_params: u64,
    /// How unevenly its axes shrink: Σ (log kept share − their mean)².
    pub imbalance: f64,
}

/// What a grid held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// Points of the grid.
    pub n_points: u64,
    /// Those within the budget.
    pub n_within: u64,
    /// Those among them that are legal and that the filter lets through.
    pub n_legal: u64,
    /// How long counting took.
    pub seconds: f64,
    /// Points counted per second.
    pub points_per_second: f64,
}

impl Grid {
    /// A grid of axes.
    ///
    /// # Errors
    /// `Recipe` for an axis without sizes, or two of a kind.
    pub fn new(axes: Vec<GridAxis>) -> Result<Self> {
        for (idx, axis) in axes.iter().enumerate() {
            let kind = axis.kind();
            if axis.len() == 0 {
                return Err(Error::Recipe(format!("grid: `{kind}` has no sizes")));
            }
            if axes.iter().take(idx).any(|other| other.kind() == kind) {
                return Err(Error::Recipe(format!("grid: `{kind}` is given twice")));
            }
        }
        // Widths first, since factors of the hidden width follow it.
        let (mut sizes, factors): (Vec<_>, Vec<_>) = axes
            .into_iter()
            .partition(|axis| matches!(axis, GridAxis::Sizes(..)));
        sizes.extend(factors);
        Ok(Grid { axes: sizes })
    }

    /// Number of points.
    pub fn n_points(&self) -> u64 {
        self.axes
            .iter()
            .map(|axis| axis.len() as u64)
            .fold(1, u64::saturating_mul)
    }

    /// Counts every point by sizes alone; gives the legal ones that cost what they may and that
    /// `keep` lets through, most balanced first.
    ///
    /// # Errors
    /// `Recipe` for a kind that the model has no axis for; what `keep` says.
    pub fn survey(
        &self,
        spec: &ModelSpec,
        space: &Space,
        cost: &dyn Fn(u64, &[usize]) -> u64,
        (within, keep): (Within, Keep),
    ) -> Result<(Vec<Candidate>, Survey)> {
        self.check(space)?;
        let kinds: Vec<String> = space.axes.iter().map(|axis| axis.kind.clone()).collect();
        let params = CountPolynomial::of(spec, &kinds);
        let first = Point::first(self, space, &kinds);
        let begin = Instant::now();
        let shapes = self.shapes_within(first, &params, cost, within)?;
        let seconds = begin.elapsed().as_secs_f64();
        let (n_points, n_within) = (self.n_points(), shapes.len() as u64);
        let candidates = legal(shapes, &kinds, space, keep)?;
        let survey = Survey {
            n_points,
            n_within,
            n_legal: candidates.len() as u64,
            seconds,
            points_per_second: n_points as f64 / seconds.max(1e-9),
        };
        Ok((candidates, survey))
    }

    /// Refuses kinds that the space has not, and more points than can be counted.
    fn check(&self, space: &Space) -> Result<()> {
        for axis in &self.axes {
            space.axis(axis.kind())?;
        }
        let n = self.n_points();
        if n > MAX_POINTS {
            return Err(Error::Recipe(format!(
                "grid: {n} points, at most {MAX_POINTS} are counted; name fewer sizes"
            )));
        }
        Ok(())
    }

    /// The points from here on that cost what they may.
    fn shapes_within(
        &self,
        mut point: Point,
        params: &CountPolynomial,
        cost: &dyn Fn(u64, &[usize]) -> u64,
        within: Within,
    ) -> Result<Vec<Shape>> {
        let mut shapes = Vec::new();
        loop {
            let n_params = params.at(&point.sizes);
            if within.holds(cost(n_params, &point.sizes)) {
                if shapes.len() == MAX_WITHIN {
                    let message = format!(
                        "grid: more than {MAX_WITHIN} points are within the budget; name fewer \
                         sizes"
                    );
                    return Err(Error::Recipe(message));
                }
                shapes.push((point.sizes.clone(), n_params));
            }
            if !point.next(self) {
                return Ok(shapes);
            }
        }
    }

    /// Whether an axis names this kind.
    fn names(&self, kind: &str) -> bool {
        self.axes.iter().any(|axis| axis.kind() == kind)
    }
}

/// Sizes in the order of the space's kinds, and the parameters that they come to.
type Shape = (Vec<usize>, u64);

/// The shapes that the space allows and `keep` lets through, most balanced first.
fn legal(
    shapes: Vec<Shape>,
    kinds: &[String],
    space: &Space,
    keep: Keep,
) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for (sizes, n_params) in shapes {
        let sizes: Sizes = kinds.iter().cloned().zip(sizes).collect();
        if space.settle(&sizes).is_ok_and(|whole| whole == sizes) && keep(&sizes, n_params)? {
            candidates.push(Candidate {
                imbalance: imbalance(&sizes, space),
                sizes,
                layers: None,
                n_params,
            });
        }
    }
    candidates.sort_by(|a, b| {
        let by_imbalance = a.imbalance.total_cmp(&b.imbalance);
        by_imbalance.then_with(|| a.sizes.cmp(&b.sizes))
    });
    Ok(candidates)
}

/// A place in a grid: an index for each axis, and the sizes there in the order of the space's
/// kinds.
struct Point {
    indices: Vec<usize>,
    sizes: Vec<usize>,
    /// Where each axis puts its size.
    places: Vec<usize>,
    hidden: Option<usize>,
    /// Sizes that follow another one where the grid does not name them: place of the one, of the
    /// other, how.
    follows: Vec<(usize, usize, Led)>,
}

impl Point {
    fn first(grid: &Grid, space: &Space, kinds: &[String]) -> Self {
        let axes = grid.axes.iter();
        let places = axes.filter_map(|axis| position(kinds, axis.kind()));
        let places = places.collect();
        let mut follows = Vec::new();
        for led in space.ties.led(&|kind| grid.names(kind)) {
            let (by, kind) = (position(kinds, &led.by), position(kinds, &led.kind));
            if let (Some(by), Some(kind)) = (by, kind) {
                follows.push((by, kind, led));
            }
        }
        let mut point = Point {
            indices: vec![0; grid.axes.len()],
            sizes: space.axes.iter().map(|axis| axis.full).collect(),
            places,
            hidden: position(kinds, HIDDEN),
            follows,
        };
        point.set_from(grid, 0);
        point
    }

    fn set_from(&mut self, grid: &Grid, axis: usize) {
        for axis in axis..grid.axes.len() {
            self.set(grid, axis);
        }
        for (by, kind, led) in &self.follows {
            let size = self.sizes.get(*by).map(|&by| led.size(by));
            if let (Some(size), Some(place)) = (size, self.sizes.get_mut(*kind)) {
                *place = size;
            }
        }
    }

    fn set(&mut self, grid: &Grid, axis: usize) {
        let Some(&idx) = self.indices.get(axis) else {
            return;
        };
        let size = match grid.axes.get(axis) {
            Some(GridAxis::Sizes(_, sizes)) => sizes.get(idx).copied(),
            Some(GridAxis::MlpFactors(factors)) => {
                let hidden = self.hidden_size() as f64;
                factors.get(idx).map(|factor| (factor * hidden) as usize)
            }
            None => None,
        };
        let place = self.places.get(axis);
        let place = place.and_then(|&place| self.sizes.get_mut(place));
        if let (Some(size), Some(place)) = (size, place) {
            *place = size;
        }
    }

    fn hidden_size(&self) -> usize {
        // Absent where no axis cuts it.
        let size = self.hidden.and_then(|place| self.sizes.get(place));
        size.copied().unwrap_or(0)
    }

    /// The next point, last axis fastest; false after the last one.
    fn next(&mut self, grid: &Grid) -> bool {
        for axis in (0..grid.axes.len()).rev() {
            let len = grid.axes.get(axis).map_or(1, GridAxis::len);
            let Some(idx) = self.indices.get_mut(axis) else {
                return false;
            };
            *idx += 1;
            if *idx < len {
                // Later axes began anew; those that follow another one's size with them.
                self.set_from(grid, axis);
                return true;
            }
            *idx = 0;
        }
        false
    }
}

fn imbalance(sizes: &Sizes, space: &Space) -> f64 {
    let mut shares = Vec::with_capacity(space.axes.len());
    for axis in &space.axes {
        let Some(&size) = sizes.get(&axis.kind) else {
            continue;
        };
        // Heads as wide as the source's count as no axis: they are cut on request, and few
        // families can.
        let is_width = [ROPE_PAIRS, MAMBA_HEAD_DIM].contains(&axis.kind.as_str());
        if !is_width || size != axis.full {
            shares.push((size as f64 / axis.full.max(1) as f64).ln());
        }
    }
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    shares.iter().map(|share| (share - mean).powi(2)).sum()
}
