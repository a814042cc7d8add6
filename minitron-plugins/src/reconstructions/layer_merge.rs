use std::collections::BTreeMap;

use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::{Replaced, StudentEditor, TakenUnits};
use minitron_core::spec::{At, HEADS, KV_HEADS, MLP, dim_of_layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::least_squares::LeastSquares;

mod choosing;

use choosing::{best, of_kept, ranked};

/// Merges dropped layers into the kept layer before them: each part of that layer keeps the best
/// units of all of them, as many as it had.
///
/// A unit, a neuron or a head (a key/value head with its queries, where they share it), is worth
/// what it adds to the residual stream of the teacher by itself, the mean over tokens of ‖W_u·x_u‖²
/// with x_u its share of what the part's writer reads. Of a dropped layer that is taken times 1 −
/// 2·φ, at least 0, where φ is the share of what the part reads there that a linear map of what the
/// merged part is to read does not tell: a unit that cannot see what it saw is worth less. Units
/// of a dropped layer are put, with all their weights, in the place of the layer's own that are
/// worth less.
///
/// They read the stream of another layer then, so [`least_squares`](super::least_squares) belongs
/// behind it: it fits what they read to the dropped layer's input, and what all of them write to
/// what the layers together add. Parts that cannot be merged stay as they are: experts, Mamba,
/// heads behind norms of queries and keys, attention of another window, and what is normed before
/// it is added. So does a layer of which a part would read something else, by more than a quarter,
/// behind what earlier parts of the dropped ones add: a first layer often. Where the stream is
/// normed after every sum, the last part alone is merged, the MLP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerMerge {}

minitron_core::plugin! {
    Reconstruction for LayerMerge {
        tag: "layer_merge",
        summary: "a kept layer takes the best neurons and heads of those dropped behind it",
        source: "measured here, docs/results/reconstruction.md",
    }
}

/// A part of the student with the dropped layers whose units it may take.
struct Merged {
    at: At,
    own: usize,
    from: Vec<usize>,
}

#[typetag::serde(name = "layer_merge")]
impl Reconstruction for LayerMerge {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if !editor.taken().is_empty() || !editor.fits().is_empty() {
            let message = "layer_merge: name it once, and before `least_squares`";
            return Err(Error::Recipe(message.into()));
        }
        let merged = merged(editor);
        let wanted = merged.iter().map(|part| {
            let heads = heads_of(editor, part);
            (part.at, heads.map_or(MLP, |_| HEADS))
        });
        let (mut added, usual) = (BTreeMap::new(), LeastSquares::default());
        editor.for_each_units_seen(&wanted.collect(), &mut |seen| {
            let factor = match &seen.told {
                Some(told) => (1.0 - 2.0 * usual.untold(editor, told)?).max(0.0),
                None => 1.0,
            };
            let worth = seen.added.iter().map(|worth| worth * factor);
            added.insert((seen.at, seen.layer), worth.collect::<Vec<f64>>());
            Ok(())
        })?;
        let mut all_taken = Vec::new();
        for part in &merged {
            let heads = heads_of(editor, part);
            let worth = |layer: usize| -> Vec<f64> {
                let of_units = added.get(&(part.at, layer));
                of_units.cloned().unwrap_or_default()
            };
            all_taken.extend(match heads {
                Some(heads) => heads.best(editor, part, &worth),
                None => {
                    let kept = editor.kept(&dim_of_layer(MLP, part.own));
                    let own = of_kept(&worth(part.own), kept);
                    let others = part.from.iter().map(|&layer| (layer, worth(layer)));
                    let best = best(&own, &others.collect::<Vec<_>>());
                    taken(part, best, |replaced| [(MLP.to_owned(), replaced)].into())
                }
            });
        }
        all_taken
            .into_iter()
            .try_for_each(|taken| editor.take_units(taken))
    }
}

/// Parts of the student behind which layers were dropped whose units they may take.
fn merged(editor: &StudentEditor) -> Vec<Merged> {
    let mut merged = Vec::new();
    for layer in 0..editor.n_layers() {
        let layers = editor.stands_for(layer);
        let own = layers.start;
        let places: Vec<At> = editor.spec().places(layer).map(|(at, _)| at).collect();
        for at in places {
            let dropped = layers.clone().skip(1);
            let from: Vec<usize> = dropped.filter(|&from| editor.can_take(at, from)).collect();
            let part = Merged { at, own, from };
            let is_mlp = has(editor, &part, MLP);
            if !part.from.is_empty() && (is_mlp || heads_of(editor, &part).is_some()) {
                merged.push(part);
            }
        }
    }
    merged
}

/// Whether the part is made of units of a kind.
fn has(editor: &StudentEditor, part: &Merged, kind: &str) -> bool {
    let layer = part.at.layer().into_iter();
    let mut parts = layer.flat_map(|layer| editor.spec().places(layer));
    let found = parts.find(|(at, _)| *at == part.at);
    found.is_some_and(|(_, part)| part.mixer.observed().iter().any(|seen| seen.kind == kind))
        && editor
            .teacher_spec()
            .dims
            .contains_key(&dim_of_layer(kind, part.own))
}

/// How the heads of a part of the student share keys and values.
struct Heads {
    /// Queries of a key/value head in the teacher, and in the student.
    n_all: usize,
    n_kept: usize,
    /// Whether they share them.
    is_shared: bool,
}

/// None where it has none, or the student's heads share otherwise than the teacher's.
fn heads_of(editor: &StudentEditor, part: &Merged) -> Option<Heads> {
    if !has(editor, part, HEADS) {
        return None;
    }
    let size = |dims: &BTreeMap<_, minitron_core::spec::Dim>, kind, layer| {
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

impl Heads {
    /// The best key/value heads, each with the best of its queries.
    fn best(
        &self,
        editor: &StudentEditor,
        part: &Merged,
        worth: &dyn Fn(usize) -> Vec<f64>,
    ) -> Vec<TakenUnits> {
        let own = of_kept(
            &worth(part.own),
            editor.kept(&dim_of_layer(HEADS, part.own)),
        );
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
        for (from, groups) in best {
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
            all.extend(taken(part, vec![(from, heads)], |heads| {
                let mut units = BTreeMap::from([(HEADS.to_owned(), heads)]);
                if self.is_shared {
                    units.insert(KV_HEADS.to_owned(), groups.clone());
                }
                units
            }));
        }
        all
    }
}

fn taken(
    part: &Merged,
    best: Vec<(usize, Replaced)>,
    units: impl Fn(Replaced) -> BTreeMap<String, Replaced>,
) -> Vec<TakenUnits> {
    let Some((layer, number)) = part.at.place() else {
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
