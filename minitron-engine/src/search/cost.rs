//! The parameter count as a polynomial in sizes: what a grid of millions of points is counted with.

use std::collections::BTreeMap;

use minitron_core::spec::{At, DEPTH, ModelSpec, Param, Part, split_dim};

/// `Σ coefficient · Π size^power` over a fixed list of kinds; equal to [`ModelSpec::n_params_at`]
/// at every point.
#[derive(Debug, Clone, PartialEq)]
pub struct CountPolynomial {
    kinds: Vec<String>,
    /// Of what stands around the layers, and of all layers where depth is no size.
    around: Vec<Monomial>,
    /// Of all layers at the depth's power, to be shared out among `n_layers`.
    layers: Vec<Monomial>,
    n_layers: u64,
}

/// Indices of kinds, one for each power, and the factor.
type Monomial = (Vec<usize>, u64);

impl CountPolynomial {
    /// Of a model, in sizes of these kinds; other kinds keep their size.
    pub fn of(spec: &ModelSpec, kinds: &[String]) -> Self {
        let mut terms: BTreeMap<Vec<usize>, u64> = BTreeMap::new();
        let depth = kinds.iter().position(|kind| kind == DEPTH);
        for tensor in &spec.params {
            for (mut powers, factor) in products(tensor, kinds, spec) {
                powers.extend(tensor.layer().and(depth));
                powers.sort_unstable();
                let sum = terms.entry(powers).or_default();
                *sum = sum.saturating_add(factor);
            }
        }
        let (layers, around) = terms
            .into_iter()
            .partition(|(powers, _)| depth.is_some_and(|depth| powers.contains(&depth)));
        CountPolynomial {
            kinds: kinds.to_vec(),
            around,
            layers,
            n_layers: spec.n_layers().max(1) as u64,
        }
    }

    /// At sizes in the order of the kinds.
    pub fn at(&self, sizes: &[usize]) -> u64 {
        let layers = sum_at(&self.layers, sizes) / self.n_layers;
        layers.saturating_add(sum_at(&self.around, sizes))
    }

    /// The kinds, in order.
    pub fn kinds(&self) -> &[String] {
        &self.kinds
    }
}

/// The value of some terms together; the largest number where it does not fit.
fn sum_at(terms: &[Monomial], sizes: &[usize]) -> u64 {
    let mut sum = 0_u64;
    for (powers, factor) in terms {
        let mut product = *factor;
        for &idx in powers {
            // A size that is not given makes a count that no budget takes.
            let size = sizes.get(idx).map_or(u64::MAX, |&size| size as u64);
            product = product.saturating_mul(size);
        }
        sum = sum.saturating_add(product);
    }
    sum
}

/// A tensor's volume, multiplied out: a side is a sum of parts.
fn products(tensor: &Param, kinds: &[String], spec: &ModelSpec) -> Vec<Monomial> {
    // Experts are alike: the first one's tensors as often as there are experts.
    let mut terms = match (tensor.at, &tensor.unit_of) {
        (At::Unit { unit, .. }, Some(_)) if unit > 0 => return Vec::new(),
        (At::Unit { .. }, Some(dim)) => vec![term_of(dim, 1, kinds, spec)],
        _ => vec![(Vec::new(), 1)],
    };
    for side in &tensor.sides {
        terms = times(&terms, &terms_of(&side.0, kinds, spec));
    }
    terms
}

/// The length of some parts in a row.
fn terms_of(parts: &[Part], kinds: &[String], spec: &ModelSpec) -> Vec<Monomial> {
    let mut terms = Vec::new();
    for part in parts {
        match part {
            Part::Fixed(n) => terms.push((Vec::new(), *n as u64)),
            Part::Units { dim, block } => terms.push(term_of(dim, *block as u64, kinds, spec)),
            Part::Each { dim, parts } => {
                let unit = term_of(dim, 1, kinds, spec);
                terms.extend(times(&[unit], &terms_of(parts, kinds, spec)));
            }
            Part::OfRow { .. } => terms.extend(terms_of(&[part.in_row(0)], kinds, spec)),
        }
    }
    terms
}

/// So much for every unit of a dim: of first degree in a kind of the list, else a constant.
fn term_of(dim: &str, each: u64, kinds: &[String], spec: &ModelSpec) -> Monomial {
    let (kind, _) = split_dim(dim);
    match position(kinds, dim).or_else(|| position(kinds, kind)) {
        Some(idx) => (vec![idx], each),
        None => {
            let dim = spec.dims.get(dim);
            let constant = dim.map_or(u64::MAX, |dim| each.saturating_mul(dim.size as u64));
            (Vec::new(), constant)
        }
    }
}

/// Where a kind stands among all.
pub(super) fn position(kinds: &[String], name: &str) -> Option<usize> {
    kinds.iter().position(|kind| kind == name)
}

/// The product of two sums of terms, multiplied out.
fn times(one: &[Monomial], other: &[Monomial]) -> Vec<Monomial> {
    let mut products = Vec::with_capacity(one.len() * other.len());
    for (powers, factor) in one {
        for (more, times) in other {
            let powers = [powers.as_slice(), more].concat();
            products.push((powers, factor.saturating_mul(*times)));
        }
    }
    products
}
