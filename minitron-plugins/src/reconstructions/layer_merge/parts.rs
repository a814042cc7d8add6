//! Parts that can take units.

use std::collections::BTreeMap;

use minitron_core::reconstruct::{Replaced, StudentEditor, TakenUnits};
use minitron_core::spec::{At, dim_of_layer};

/// A part of the student with the dropped layers whose units it may take.
pub(super) struct Merged {
    pub at: At,
    pub own: usize,
    pub from: Vec<usize>,
}

impl Merged {
    /// Whether it is made of units of a kind.
    pub fn has(&self, editor: &StudentEditor, kind: &str) -> bool {
        let layer = self.at.layer().into_iter();
        let mut parts = layer.flat_map(|layer| editor.spec().places(layer));
        let found = parts.find(|(at, _)| *at == self.at);
        found.is_some_and(|(_, part)| part.mixer.observed().iter().any(|seen| seen.kind == kind))
            && editor
                .teacher_spec()
                .dims
                .contains_key(&dim_of_layer(kind, self.own))
    }

    /// With units of dropped layers in the places of its own.
    pub fn taken(
        &self,
        best: Vec<(usize, Replaced)>,
        units: impl Fn(Replaced) -> BTreeMap<String, Replaced>,
    ) -> Vec<TakenUnits> {
        let Some((layer, number)) = self.at.place() else {
            return Vec::new();
        };
        let best = best.into_iter();
        let taken = best.map(|(from, replaced)| TakenUnits {
            layer,
            part: number,
            from,
            units: units(replaced),
        });
        taken.collect()
    }
}
