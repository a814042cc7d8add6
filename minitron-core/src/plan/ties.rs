//! What ties sizes to each other, solved in one place: what follows from some of them, and which go
//! together.

use std::collections::{BTreeMap, BTreeSet};

use super::axis_sizes::AxisSizes;
use crate::spec::{
    Constraint, HEADS, HIDDEN, KV_HEADS, ModelSpec, ROPE_PAIRS, Sizes, dim_of_layer, split_dim,
};

/// How query heads follow their key/value heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queries {
    /// The axis of the query heads: `heads`, or `heads.3` where layers differ.
    pub of: String,
    /// The axis of their key/value heads.
    pub by: String,
    /// Query heads of one key/value head.
    pub per_kv_head: usize,
    /// Divisibility of all of them, besides that by the key/value heads.
    pub multiple_of: usize,
}

/// A key/value head takes its queries along, whether or not queries are an axis of their own.
pub(super) fn with_queries(
    axes: &mut Vec<AxisSizes>,
    multiples: &BTreeMap<String, usize>,
    spec: &ModelSpec,
) -> Vec<Queries> {
    let kv_heads: Vec<(String, usize)> = axes
        .iter()
        .filter(|axis| split_dim(&axis.kind).0 == KV_HEADS)
        .map(|axis| (axis.kind.clone(), axis.full))
        .collect();
    let mut found = Vec::new();
    for (by, n_kv_heads) in kv_heads {
        let of = split_dim(&by)
            .1
            .map_or(HEADS.to_owned(), |layer| dim_of_layer(HEADS, layer));
        let Some(full) = spec
            .dims
            .get(&of)
            .or_else(|| spec.dims_of(HEADS).next())
            .map(|dim| dim.size)
        else {
            continue;
        };
        if !axes.iter().any(|axis| axis.kind == of) {
            axes.push(AxisSizes {
                kind: of.clone(),
                full,
                step: n_kv_heads,
                held: None,
            });
        }
        let first = multiples
            .iter()
            .find(|(dim, _)| **dim == of || split_dim(dim).0 == of);
        let multiple_of = first.map_or(1, |(_, &multiple_of)| multiple_of);
        found.push(Queries {
            of,
            by,
            per_kv_head: full / n_kv_heads.max(1),
            multiple_of,
        });
    }
    found
}

/// A size that another one decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// The kind that is known.
    pub by: String,
    /// The kind that follows.
    pub kind: String,
    factor: usize,
    divisor: usize,
}

impl Led {
    fn new(by: &str, kind: &str, factor: usize, divisor: usize) -> Self {
        Led {
            by: by.to_owned(),
            kind: kind.to_owned(),
            factor,
            divisor,
        }
    }

    /// The size that follows.
    pub fn size(&self, by: usize) -> usize {
        by.saturating_mul(self.factor) / self.divisor.max(1)
    }
}

/// The rules of a model, and of what is asked for.
#[derive(Debug, Clone, Default)]
pub struct Ties {
    constraints: Vec<Constraint>,
    /// Where queries share keys and values and whole groups may go.
    queries: Vec<Queries>,
    /// Sizes of the source, also of kinds that no axis prunes.
    source: Sizes,
}

impl Ties {
    /// The rules of a model of these sizes.
    pub fn new(constraints: &[Constraint], source: Sizes) -> Self {
        Ties {
            constraints: constraints.to_vec(),
            queries: Vec::new(),
            source,
        }
    }

    /// One more rule.
    pub fn add(&mut self, constraint: Constraint) {
        self.constraints.push(constraint);
    }

    pub(super) fn share(&mut self, queries: Queries) {
        self.queries.push(queries);
    }

    /// Whether no size says anything of another one.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty() && self.together().is_empty()
    }

    /// Why a kind keeps its size, where it has to.
    pub fn held(&self, kind: &str) -> Option<&'static str> {
        self.constraints
            .iter()
            .find_map(|constraint| match constraint {
                Constraint::Held { kind: held, why } if held == kind => Some(*why),
                // Hidden as wide as all heads, whose width is in the rule: narrower ones would
                // break it.
                Constraint::Product { of, by, why, .. }
                    if (kind, of.as_str(), by.as_str()) == (ROPE_PAIRS, HIDDEN, HEADS) =>
                {
                    Some(*why)
                }
                _ => None,
            })
    }

    /// What one kind is of another one, where it is a product: `hidden` of `heads`.
    pub fn times(&self, of: &str, by: &str) -> Option<usize> {
        self.products()
            .find(|product| (product.0, product.1) == (of, by))
            .map(|product| product.2)
    }

    /// What all sizes of a kind are multiples of, by its products.
    pub(super) fn factor_of(&self, kind: &str) -> Option<usize> {
        self.products()
            .find(|product| product.0 == kind)
            .map(|product| product.2)
    }

    /// Product, factor, and the number they differ by.
    fn products(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.constraints
            .iter()
            .filter_map(|constraint| match constraint {
                Constraint::Product { of, by, times, .. } => {
                    Some((of.as_str(), by.as_str(), *times))
                }
                _ => None,
            })
    }

    /// Kinds that are only legal together, each once: those of products and of divisors.
    pub fn together(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = Vec::new();
        for constraint in &self.constraints {
            let pair = match constraint {
                Constraint::Product { of, by, .. } => [of, by],
                Constraint::Divides { of, divisor, .. } => [of, divisor],
                Constraint::Held { .. } | Constraint::AtLeast { .. } => continue,
            };
            for kind in pair {
                if !kinds.contains(&kind.as_str()) {
                    kinds.push(kind);
                }
            }
        }
        kinds
    }

    /// What follows where only some kinds are given; each kind follows one other at most.
    pub fn led(&self, is_given: &dyn Fn(&str) -> bool) -> Vec<Led> {
        let mut possible: Vec<(&str, &str, usize, usize)> = Vec::new();
        for (of, by, times) in self.products() {
            possible.push((of, by, 1, times));
            possible.push((by, of, times, 1));
        }
        for queries in &self.queries {
            possible.push((&queries.by, &queries.of, queries.per_kv_head, 1));
        }
        let mut found: Vec<Led> = Vec::new();
        for (by, kind, factor, divisor) in possible {
            let is_free = is_given(by) && !is_given(kind);
            if is_free && found.iter().all(|other| other.kind != kind) {
                found.push(Led::new(by, kind, factor, divisor));
            }
        }
        found
    }

    /// Adds what follows from the sizes that are there.
    pub fn follow(&self, sizes: &mut Sizes) {
        for led in self.led(&|kind| sizes.contains_key(kind)) {
            if let Some(size) = sizes.get(&led.by).map(|&by| led.size(by)) {
                sizes.insert(led.kind, size);
            }
        }
    }

    /// Whether trying sizes of a kind is of no use: a held one decides it, or the factor of its
    /// product, which is tried.
    pub fn is_decided(
        &self,
        kind: &str,
        is_held: &dyn Fn(&str) -> bool,
        is_tried: &dyn Fn(&str) -> bool,
    ) -> bool {
        self.products().any(|(of, by, _)| {
            kind == by && is_held(of) || kind == of && (is_held(by) || is_tried(by))
        })
    }

    /// An axis beside other sizes: fewer key/value heads leave fewer query heads, equally many for
    /// each.
    pub(super) fn beside(&self, mut axis: AxisSizes, sizes: &Sizes) -> AxisSizes {
        if let Some((queries, kv_heads)) = self.key_values_of(&axis.kind, sizes) {
            axis.full = kv_heads.saturating_mul(queries.per_kv_head).min(axis.full);
            axis.step = common_multiple(queries.multiple_of, kv_heads).min(axis.full);
        }
        axis
    }

    /// How the query heads of an axis follow, and how many key/value heads stay beside them.
    fn key_values_of(&self, axis: &str, sizes: &Sizes) -> Option<(&Queries, usize)> {
        let (kind, layer) = split_dim(axis);
        let own = self
            .queries
            .iter()
            .find(|queries| queries.of == axis || queries.of == kind)?;
        let by_layer = layer.map(|layer| dim_of_layer(split_dim(&own.by).0, layer));
        let kv_heads = by_layer
            .and_then(|name| sizes.get(&name))
            .or_else(|| sizes.get(&own.by))?;
        Some((own, *kv_heads))
    }

    /// The rule that sizes break, where they break one: of what all layers share, then layer by
    /// layer where they differ.
    pub fn objection(&self, sizes: &Sizes) -> Option<String> {
        let layers: BTreeSet<Option<usize>> = sizes
            .keys()
            .chain(self.source.keys())
            .map(|name| split_dim(name).1)
            .collect();
        let source = &self.source;
        for layer in std::iter::once(None).chain(layers) {
            let in_layer = InLayer {
                layer,
                sizes,
                source,
            };
            let objection = self
                .constraints
                .iter()
                .find_map(|rule| in_layer.breaks(rule));
            if objection.is_some() {
                return objection;
            }
        }
        None
    }
}

/// The sizes of one layer, or of what all layers share, beside those of the source.
struct InLayer<'a> {
    layer: Option<usize>,
    sizes: &'a Sizes,
    source: &'a Sizes,
}

impl InLayer<'_> {
    /// What a rule says against the sizes, where they break it.
    fn breaks(&self, rule: &Constraint) -> Option<String> {
        match rule {
            Constraint::Product {
                of: kind,
                by,
                times,
                why,
            } => {
                let (product, factor) = (self.size(kind)?, self.size(by)?);
                let is_legal = product == factor.saturating_mul(*times);
                (!is_legal).then(|| {
                    let rule = format!("{kind} must be {by} x {times}");
                    format!("{kind} {product} with {factor} {by}: {why}, so {rule}")
                })
            }
            Constraint::Divides {
                divisor,
                of: kind,
                why,
            } => {
                let (multiple, by) = (self.size(kind)?, self.size(divisor)?);
                let of_source = (self.in_source(kind), self.in_source(divisor));
                let is_source = of_source == (Some(multiple), Some(by));
                let is_legal = multiple.is_multiple_of(by.max(1)) || is_source;
                (!is_legal).then(|| format!("{kind} {multiple} with {by} {divisor}: {why}"))
            }
            Constraint::AtLeast { kind, least, why } => {
                let size = self.size(kind)?;
                (size < *least).then(|| format!("{kind} {size} is below {least}: {why}"))
            }
            Constraint::Held { kind, why } => {
                let (wanted, full) = (self.size(kind)?, self.in_source(kind)?);
                (wanted != full)
                    .then(|| format!("{kind}: {wanted} is not legal, it keeps its {full}: {why}"))
            }
        }
    }

    /// The size asked for, or that of the source.
    fn size(&self, kind: &str) -> Option<usize> {
        self.of(self.sizes, kind).or_else(|| self.in_source(kind))
    }

    fn in_source(&self, kind: &str) -> Option<usize> {
        self.of(self.source, kind)
    }

    /// The layer's own size goes before that of its kind.
    fn of(&self, sizes: &Sizes, kind: &str) -> Option<usize> {
        let own = self
            .layer
            .and_then(|layer| sizes.get(&dim_of_layer(kind, layer)));
        // A part that goes has no say.
        let own = own.filter(|size| **size > 0);
        own.or_else(|| sizes.get(kind)).copied()
    }
}

/// Lowest number that both divide.
pub(super) fn common_multiple(a: usize, b: usize) -> usize {
    let (a, b) = (a.max(1), b.max(1));
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a.saturating_mul(b / divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(pairs: &[(&str, usize)]) -> Sizes {
        pairs
            .iter()
            .map(|&(kind, size)| (kind.to_owned(), size))
            .collect()
    }

    fn ties() -> Ties {
        let constraints = [
            Constraint::no_head_dim(8),
            Constraint::Divides {
                divisor: "groups".into(),
                of: "experts".into(),
                why: "routers choose in groups",
            },
            Constraint::held("latent", "a projector feeds it"),
        ];
        let source = [
            ("hidden", 32),
            ("heads", 4),
            ("kv_heads", 2),
            ("experts", 9),
            ("groups", 2),
            ("latent", 5),
        ];
        let mut ties = Ties::new(&constraints, sizes(&source));
        ties.share(Queries {
            of: "heads".into(),
            by: "kv_heads".into(),
            per_kv_head: 2,
            multiple_of: 1,
        });
        ties
    }

    #[test]
    fn what_is_left_out_follows_what_is_given() {
        let followed = |given: &[(&str, usize)]| {
            let mut sizes = sizes(given);
            ties().follow(&mut sizes);
            sizes
        };
        assert_eq!(
            followed(&[("hidden", 16)]),
            sizes(&[("hidden", 16), ("heads", 2)])
        );
        assert_eq!(
            followed(&[("heads", 3)]),
            sizes(&[("hidden", 24), ("heads", 3)])
        );
        assert_eq!(
            followed(&[("kv_heads", 1)]),
            sizes(&[("heads", 2), ("kv_heads", 1)])
        );
        // The product goes before the groups.
        let all = sizes(&[("hidden", 8), ("heads", 1), ("kv_heads", 1)]);
        assert_eq!(followed(&[("hidden", 8), ("kv_heads", 1)]), all);
        let both = [("hidden", 8), ("heads", 4)];
        assert_eq!(followed(&both), sizes(&both));
        assert_eq!(ties().together(), ["hidden", "heads", "experts", "groups"]);
    }

    #[test]
    fn sizes_that_do_not_go_together_are_told_with_the_reason() {
        let objection =
            |given: &[(&str, usize)]| ties().objection(&sizes(given)).unwrap_or_default();
        assert_eq!(objection(&[]), "");
        assert_eq!(objection(&[("experts", 8)]), "");
        assert_eq!(
            objection(&[("experts", 7)]),
            "experts 7 with 2 groups: routers choose in groups"
        );
        // The source's own sizes are as they are.
        assert_eq!(objection(&[("experts", 9), ("groups", 2)]), "");
        let says = "hidden 16 with 3 heads: a config of this family has no head_dim, so hidden \
                    must be heads x 8";
        assert_eq!(objection(&[("hidden", 16), ("heads", 3)]), says);
        assert_eq!(
            objection(&[("latent", 4)]),
            "latent: 4 is not legal, it keeps its 5: a projector feeds it"
        );
    }

    #[test]
    fn a_kind_that_others_decide_is_not_tried() {
        let none = |_: &str| false;
        let is = |kind: &'static str| move |other: &str| other == kind;
        assert!(ties().is_decided("hidden", &none, &is("heads")));
        assert!(!ties().is_decided("heads", &none, &is("hidden")));
        assert!(ties().is_decided("heads", &is("hidden"), &none));
        assert!(ties().is_decided("hidden", &is("heads"), &none));
        assert!(!ties().is_decided("experts", &is("groups"), &none));
    }
}
