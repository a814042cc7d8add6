use std::collections::BTreeMap;

use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Present, Result};
use minitron_core::reconstruct::{StudentEditor, TakenUnits};
use minitron_core::spec::{At, HEADS, MLP, dim_of_layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::least_squares::LeastSquares;

mod choosing;
mod heads;
mod parts;

use choosing::{Best, best, of_kept};
use heads::Heads;
use parts::Merged;

/// Merges dropped layers into the kept layer before them: each part of that layer keeps the best
/// units of all of them, as many as it had.
///
/// A unit, a neuron or a head (a key/value head with its queries, where they share it), is worth
/// what it adds to the residual stream of the teacher by itself, the mean over tokens of ‖W_u·x_u‖²
/// with x_u its share of what the part's writer reads. That is taken times 1 − 2·φ, at least 0,
/// where φ is the share of what the part reads in its own layer that a linear map of what the
/// merged part is to read does not tell: a unit that cannot see what it saw is worth less. Units
/// of a dropped layer are put, with all their weights, in the place of the layer's own that are
/// worth less.
///
/// The layer's own parts, but for the first, read another stream too, behind what earlier parts of
/// all layers add. A layer that does not gain twice what its own units lose by that takes nothing:
/// a first layer often, whose MLP reads hardly more than the token.
///
/// Taken units read the stream of another layer, so [`least_squares`](super::least_squares) belongs
/// behind it: it fits what they read to the dropped layer's input, and what all of them write to
/// what the layers together add. Parts that cannot be merged stay as they are: experts, Mamba,
/// heads behind norms of queries and keys, attention of another window, and what is normed before
/// it is added. Where the stream is normed after every sum, the last part alone is merged, the MLP.
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

#[typetag::serde(name = "layer_merge")]
impl Reconstruction for LayerMerge {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if !editor.taken().is_empty() || !editor.fits().is_empty() {
            let message = "layer_merge: name it once, and before `least_squares`";
            return Err(Error::Recipe(message.into()));
        }
        let merged = merged(editor);
        let wanted = merged.iter().map(|part| {
            let heads = Heads::of(editor, part);
            (part.at, heads.map_or(MLP, |_| HEADS))
        });
        let (mut all_seen, usual) = (BTreeMap::new(), LeastSquares::default());
        editor.for_each_units_seen(&wanted.collect(), &mut |seen| {
            let factor = match &seen.told {
                Some(told) => (1.0 - 2.0 * usual.untold(editor, told)?).max(0.0),
                None => 1.0,
            };
            let (at, added) = (seen.at, seen.added);
            all_seen.insert((at, seen.layer), Seen { added, factor });
            Ok(())
        })?;
        let mut by_layer: BTreeMap<Option<usize>, Choice> = BTreeMap::new();
        for part in &merged {
            let of_layer = by_layer.entry(part.at.layer()).or_default();
            of_layer.of_part(editor, part, &all_seen)?;
        }
        let layers = by_layer.into_values();
        let worth_it = layers.filter(|choice| choice.gained > TIMES_LOST * choice.lost);
        worth_it
            .flat_map(|choice| choice.taken)
            .try_for_each(|taken| editor.take_units(taken))
    }
}

/// How many times what a layer's own units lose it is to gain: least squares would have them say
/// some of what it takes anyway.
const TIMES_LOST: f64 = 2.0;

/// What units of a part of a layer of the teacher add, and how much of that is left where the
/// merged part stands.
struct Seen {
    added: Vec<f64>,
    factor: f64,
}

/// What a layer takes.
#[derive(Default)]
struct Choice {
    /// How much more that adds than its own units as they are left.
    gained: f64,
    /// How much less its own units add since they read another stream.
    lost: f64,
    taken: Vec<TakenUnits>,
}

impl Choice {
    /// The best units of all layers, in one part.
    fn of_part(
        &mut self,
        editor: &StudentEditor,
        part: &Merged,
        all_seen: &BTreeMap<(At, usize), Seen>,
    ) -> Result<()> {
        let seen = |layer| all_seen.get(&(part.at, layer));
        let worth = |layer: usize| -> Vec<f64> {
            let of_units = seen(layer).map(|seen| seen.added.iter().map(|it| it * seen.factor));
            of_units.into_iter().flatten().collect()
        };
        let heads = Heads::of(editor, part);
        let kind = heads.as_ref().map_or(MLP, |_| HEADS);
        let kept = editor.kept(&dim_of_layer(kind, part.own));
        let own = of_kept(&worth(part.own), kept);
        let best = match heads {
            Some(heads) => heads.best(part, &own, &worth),
            None => {
                let others = part.from.iter().map(|&layer| (layer, worth(layer)));
                let best = best(&own, &others.collect::<Vec<_>>());
                Best {
                    worth: best.worth,
                    units: part.taken(best.units, |replaced| [(MLP.to_owned(), replaced)].into()),
                }
            }
        };
        let before = seen(part.own).present("what a kept layer's units add")?;
        let of_own: f64 = own.iter().sum();
        self.gained += best.worth - of_own;
        self.lost += of_kept(&before.added, kept).iter().sum::<f64>() - of_own;
        self.taken.extend(best.units);
        Ok(())
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
            let is_mlp = part.has(editor, MLP);
            if !part.from.is_empty() && (is_mlp || Heads::of(editor, &part).is_some()) {
                merged.push(part);
            }
        }
    }
    merged
}
