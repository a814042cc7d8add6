//! What to type instead of sizes that no student can have.

use super::axis_sizes::AxisSizes;
use super::space::Space;
use crate::spec::{DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, Sizes};

/// Sizes tried in the place of one.
const MAX_TRIED: usize = 512;
/// Alternatives named.
const MAX_NAMED: usize = 4;

/// Sizes as they are typed: by a short flag where a kind has one.
pub fn flags(sizes: &Sizes) -> String {
    sizes
        .iter()
        .map(|(kind, &size)| flag(kind, size))
        .collect::<Vec<_>>()
        .join(" ")
}

fn flag(kind: &str, size: usize) -> String {
    match kind {
        DEPTH => format!("--layers {size}"),
        KV_HEADS => format!("--kv-heads {size}"),
        HIDDEN | MLP | HEADS => format!("--{kind} {size}"),
        other => format!("--size {other}={size}"),
    }
}

impl AxisSizes {
    /// The nearest legal sizes as they are typed.
    pub(super) fn advice(&self, size: usize) -> String {
        self.nearest(size)
            .into_iter()
            .map(|size| flag(&self.kind, size))
            .collect::<Vec<_>>()
            .join(" or ")
    }
}

impl Space {
    /// Legal sizes near illegal ones, each as it is typed.
    pub(super) fn advice(&self, wanted: &Sizes) -> String {
        if self.settle(wanted).is_ok() {
            return flags(wanted);
        }
        let found = self.alternatives(wanted);
        if found.is_empty() {
            "none".to_owned()
        } else {
            found.iter().map(flags).collect::<Vec<_>>().join(" or ")
        }
    }

    /// Where one size changes, its nearest neighbours; where that does not do, one alternative that
    /// changes several.
    fn alternatives(&self, wanted: &Sizes) -> Vec<Sizes> {
        let kinds = self.axes.iter().map(|axis| &axis.kind);
        let candidates = kinds.filter(|kind| {
            wanted.contains_key(*kind) || [HIDDEN, HEADS, KV_HEADS].contains(&kind.as_str())
        });
        // One layer's size of a kind that is one axis.
        let of_layers = wanted
            .keys()
            .filter(|name| self.axes.iter().all(|axis| axis.kind != **name));
        let mut found: Vec<(f64, Sizes)> = candidates
            .chain(of_layers)
            .flat_map(|name| self.with_another(name, wanted))
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(MAX_NAMED);
        if found.is_empty() {
            return self.step_by_step(wanted).into_iter().collect();
        }
        found.into_iter().map(|(_, sizes)| sizes).collect()
    }

    /// The nearest size below and the nearest above that make the others legal, with how far they
    /// are.
    fn with_another(&self, kind: &str, wanted: &Sizes) -> Vec<(f64, Sizes)> {
        let Some(wish) = wanted
            .get(kind)
            .copied()
            .or_else(|| self.axis_beside(kind, wanted).ok().map(|axis| axis.full))
        else {
            return Vec::new();
        };
        let (below, above): (Vec<usize>, Vec<usize>) = self
            .near(kind, wish, wanted)
            .into_iter()
            .partition(|&size| size < wish);
        let mut found = Vec::new();
        for sizes in [below, above] {
            found.extend(sizes.into_iter().find_map(|size| {
                let with = self.settled_with(wanted, kind, size)?;
                Some((distance(size, wish), with))
            }));
        }
        found
    }

    /// The sizes with one of them changed, where they are legal.
    fn settled_with(&self, sizes: &Sizes, kind: &str, size: usize) -> Option<Sizes> {
        let mut sizes = sizes.clone();
        sizes.insert(kind.to_owned(), size);
        self.settle(&sizes).is_ok().then_some(sizes)
    }

    /// Each size in turn as near to the wish as those before allow.
    fn step_by_step(&self, wanted: &Sizes) -> Option<Sizes> {
        let mut sizes = Sizes::new();
        for (kind, &wish) in wanted {
            let near = self.near(kind, wish, &sizes);
            sizes = near
                .into_iter()
                .find_map(|size| self.settled_with(&sizes, kind, size))
                .unwrap_or(sizes);
        }
        (!sizes.is_empty()).then_some(sizes)
    }

    /// Legal sizes of a kind, nearest to the wish first.
    fn near(&self, kind: &str, wish: usize, beside: &Sizes) -> Vec<usize> {
        let mut legal = self
            .axis_beside(kind, beside)
            .map(|axis| axis.legal())
            .unwrap_or_default();
        legal.sort_by_key(|&size| (size.abs_diff(wish), size));
        legal.truncate(MAX_TRIED);
        legal
    }
}

fn distance(size: usize, wish: usize) -> f64 {
    (size as f64 / wish.max(1) as f64).ln().abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_without_a_flag_of_its_own_is_typed_by_the_one_of_all_kinds() {
        let sizes = [("depth", 2), ("experts", 4), ("kv_heads", 1), ("mlp", 96)];
        let sizes: Sizes = sizes
            .into_iter()
            .map(|(kind, size)| (kind.to_owned(), size))
            .collect();
        assert_eq!(
            flags(&sizes),
            "--layers 2 --size experts=4 --kv-heads 1 --mlp 96"
        );
        let axis = AxisSizes {
            kind: "experts".into(),
            full: 8,
            step: 2,
            held: None,
        };
        let error = axis.check(3).unwrap_err().to_string();
        assert!(
            error.ends_with("nearest: --size experts=2 or --size experts=4"),
            "{error}"
        );
    }
}
