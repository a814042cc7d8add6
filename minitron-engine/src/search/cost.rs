//! The parameter count as a polynomial in sizes: what a grid of millions of points is counted with.

use std::collections::BTreeMap;

use minitron_core::spec::{DEPTH, ModelSpec, Param, Part, split_dim};

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
        let is_of_layers =
            |(powers, _): &Monomial| depth.is_some_and(|depth| powers.contains(&depth));
        let (layers, around) = terms.into_iter().partition(is_of_layers);
        CountPolynomial {
            kinds: kinds.to_vec(),
            around,
            layers,
            n_layers: spec.n_layers().max(1) as u64,
        }
    }

    /// At sizes in the order of the kinds.
    pub fn at(&self, sizes: &[usize]) -> u64 {
        // A size that is not given makes a count that no budget takes.
        let size = |idx: &usize| sizes.get(*idx).map_or(u64::MAX, |&size| size as u64);
        let value = |(powers, factor): &Monomial| {
            powers.iter().fold(*factor, |product, power| {
                product.saturating_mul(size(power))
            })
        };
        let layers = self.layers.iter().map(value).fold(0, u64::saturating_add) / self.n_layers;
        self.around
            .iter()
            .map(value)
            .fold(layers, u64::saturating_add)
    }

    /// The kinds, in order.
    pub fn kinds(&self) -> &[String] {
        &self.kinds
    }
}

/// A tensor's volume, multiplied out: a side is a sum of parts.
fn products(tensor: &Param, kinds: &[String], spec: &ModelSpec) -> Vec<(Vec<usize>, u64)> {
    tensor
        .sides
        .iter()
        .fold(vec![(Vec::new(), 1)], |terms, side| {
            times(&terms, &terms_of(&side.0, kinds, spec))
        })
}

/// The length of some parts in a row.
fn terms_of(parts: &[Part], kinds: &[String], spec: &ModelSpec) -> Vec<Monomial> {
    let of_dim = |dim: &str, each: u64| {
        let position = |name: &str| kinds.iter().position(|other| other == name);
        match position(dim).or_else(|| position(split_dim(dim).0)) {
            Some(idx) => (vec![idx], each),
            None => (
                Vec::new(),
                spec.dims
                    .get(dim)
                    .map_or(u64::MAX, |found| each.saturating_mul(found.size as u64)),
            ),
        }
    };
    let of_part = |part: &Part| match part {
        Part::Fixed(n) => vec![(Vec::new(), *n as u64)],
        Part::Units { dim, block } => vec![of_dim(dim, *block as u64)],
        Part::Each { dim, parts } => times(&[of_dim(dim, 1)], &terms_of(parts, kinds, spec)),
    };
    parts.iter().flat_map(of_part).collect()
}

fn times(one: &[Monomial], other: &[Monomial]) -> Vec<Monomial> {
    let product = |(powers, factor): &Monomial| {
        let with = |(more, times): &Monomial| {
            (
                [powers.as_slice(), more].concat(),
                factor.saturating_mul(*times),
            )
        };
        other.iter().map(with).collect::<Vec<_>>()
    };
    one.iter().flat_map(product).collect()
}
