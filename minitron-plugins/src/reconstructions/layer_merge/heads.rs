//! Heads of several layers, with what they share.

use std::collections::BTreeMap;

use minitron_core::reconstruct::{Replaced, StudentEditor, TakenUnits};
use minitron_core::spec::{Dim, HEADS, KV_HEADS, dim_of_layer};

use super::choosing::{Best, best, of_kept, ranked};
use super::parts::Merged;

/// How the heads of a part of the student share keys and values.
pub(super) struct Heads {
    /// Queries of a key/value head in the teacher, and in the student.
    n_all: usize,
    n_kept: usize,
    /// Whether they share them.
    is_shared: bool,
}

impl Heads {
    /// None where it has none, or the student's heads share otherwise than the teacher's.
    pub fn of(editor: &StudentEditor, part: &Merged) -> Option<Self> {
        if !part.has(editor, HEADS) {
            return None;
        }
        let size = |dims: &BTreeMap<_, Dim>, kind, layer| {
            dims.get(&dim_of_layer(kind, layer)).map(|dim| dim.size)
        };
        let (teacher, student) = (&editor.teacher_spec().dims, &editor.spec().dims);
        let layer = part.at.layer()?;
        let (all, kept) = (
            size(teacher, HEADS, part.own)?,
            size(student, HEADS, layer)?,
        );
        match (
            size(teacher, KV_HEADS, part.own),
            size(student, KV_HEADS, layer),
        ) {
            (None, None) => Some(Heads {
                n_all: 1,
                n_kept: 1,
                is_shared: false,
            }),
            (Some(of_all), Some(of_kept)) if of_all > 0 && of_kept > 0 => Some(Heads {
                n_all: all / of_all,
                n_kept: kept / of_kept,
                is_shared: true,
            }),
            _ => None,
        }
    }

    /// The best key/value heads, each with the best of its queries.
    pub fn best(
        &self,
        part: &Merged,
        own: &[f64],
        worth: &dyn Fn(usize) -> Vec<f64>,
    ) -> Best<Vec<TakenUnits>> {
        let own: Vec<f64> = own.chunks(self.n_kept).map(|of| of.iter().sum()).collect();
        let queries = |layer: usize| -> Vec<Vec<usize>> {
            let of_heads = worth(layer);
            let groups = of_heads.chunks(self.n_all).enumerate();
            let best = groups.map(|(group, of)| {
                let mut best = ranked(of);
                best.truncate(self.n_kept);
                best.sort_unstable();
                best.into_iter()
                    .map(|head| group * self.n_all + head)
                    .collect()
            });
            best.collect()
        };
        let others = part.from.iter().map(|&layer| {
            let of_heads = worth(layer);
            let of_groups = queries(layer)
                .iter()
                .map(|heads| of_kept(&of_heads, heads).iter().sum())
                .collect();
            (layer, of_groups)
        });
        let best = best(&own, &others.collect::<Vec<_>>());
        let mut all = Vec::new();
        for (from, groups) in best.units {
            let heads = Replaced {
                places: groups
                    .places
                    .iter()
                    .flat_map(|group| group * self.n_kept..(group + 1) * self.n_kept)
                    .collect(),
                units: groups
                    .units
                    .iter()
                    .filter_map(|&group| queries(from).get(group).cloned())
                    .flatten()
                    .collect(),
            };
            all.extend(part.taken(vec![(from, heads)], |heads| {
                let mut units = BTreeMap::from([(HEADS.to_owned(), heads)]);
                if self.is_shared {
                    units.insert(KV_HEADS.to_owned(), groups.clone());
                }
                units
            }));
        }
        Best {
            worth: best.worth,
            units: all,
        }
    }
}
