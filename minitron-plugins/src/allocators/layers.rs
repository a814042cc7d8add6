//! Which layers stay at each depth, where it matters for a budget: those of hybrids cost unequally.

use std::collections::BTreeMap;

use minitron_core::plan::{Rankings, Space};
use minitron_core::spec::{DEPTH, ModelSpec, SizeMap, Sizes};

/// By depth; none where layers are alike or have no scores, and cost what they do on average.
pub(super) struct LayersByDepth(BTreeMap<usize, Vec<usize>>);

impl LayersByDepth {
    pub fn new(space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Self {
        let mut by_depth = BTreeMap::new();
        let depth = space.axis(DEPTH).ok().filter(|_| !spec.is_even());
        for size in depth.map(|axis| axis.legal()).unwrap_or_default() {
            let sizes = Sizes::from([(DEPTH.to_owned(), size)]);
            if let Ok(mut plan) = space.plan(&sizes, rankings, spec) {
                by_depth.extend(plan.kept.remove(DEPTH).map(|layers| (size, layers)));
            }
        }
        LayersByDepth(by_depth)
    }

    /// The sizes with the layers that stay.
    pub fn with(&self, sizes: &Sizes) -> SizeMap {
        let depth = sizes.get(DEPTH);
        SizeMap {
            by_name: sizes.clone(),
            layers: depth.and_then(|depth| self.0.get(depth)).cloned(),
        }
    }
}
