//! What each cut costs: what a reconstruction left of what the student's parts were to give.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use minitron_core::plan::Explained;
use minitron_core::reconstruct::{Fit, StudentEditor};
use minitron_core::spec::{
    At, HIDDEN, ParamKind, Role, Side, dim_of_layer, dim_of_unit, split_unit,
};

/// Fits as a report and `plan.json` have them: mean squares a token, and shares of the target.
pub(super) fn in_json(editor: &StudentEditor) -> Vec<Value> {
    editor
        .fits()
        .iter()
        .map(|fit| of_fit(editor, fit))
        .collect()
}

fn of_fit(editor: &StudentEditor, fit: &Fit) -> Value {
    let at = fit.projections.at;
    let roles: Vec<String> = fit.projections.roles.iter().map(Role::to_string).collect();
    json!({
        "at": at.to_string(),
        "layer": layer_of(editor, fit),
        "part": part(editor, at),
        "unit": unit_of(fit),
        "writes": fit.projections.is_writer,
        "projections": roles,
        "dims": dims(editor, fit),
        "before": fit.before,
        "after": fit.after,
        "target": fit.target,
        "lacking": fit.lacking(),
        "error": fit.error(),
        "ridge": fit.ridge,
    })
}

/// The teacher's layer that it is of: the dropped one, of units that were taken from it.
fn layer_of(editor: &StudentEditor, fit: &Fit) -> Option<usize> {
    let own = fit.projections.at.layer();
    let own = own.map(|layer| editor.source_layer(layer));
    fit.projections.from.or(own)
}

/// The expert that it is of.
fn unit_of(fit: &Fit) -> Option<usize> {
    match fit.projections.at {
        At::Unit { unit, .. } => Some(unit),
        _ => None,
    }
}

/// What the part is, in the words of its mixer.
fn part(editor: &StudentEditor, at: At) -> String {
    let layers = at.layer().into_iter();
    let mut parts = layers.flat_map(|layer| editor.spec().sublayers(layer));
    let part = parts.find(|(place, _)| *place == at.whole());
    part.map_or("head".to_owned(), |(_, part)| part.mixer.name().to_owned())
}

/// The dims of the source's plan whose units are what projections read.
fn dims(editor: &StudentEditor, fit: &Fit) -> Vec<String> {
    if !fit.projections.is_writer {
        return vec![HIDDEN.to_owned()];
    }
    let (spec, at) = (editor.spec(), fit.projections.at);
    let roles = fit.projections.roles.iter();
    let weights = roles.filter_map(|&role| {
        let own = spec.find(at, role, ParamKind::Weight);
        own.or_else(|| spec.find(at.whole(), role, ParamKind::Weight))
    });
    let sides = weights.flat_map(|param| match (unit_of(fit), param.sides.as_slice()) {
        // An expert's row of one tensor.
        (Some(unit), [_, of_row @ ..]) if param.at != at => {
            of_row.iter().map(|side| side.in_row(unit)).collect()
        }
        (_, sides) => sides.to_vec(),
    });
    let sides: Vec<Side> = sides.collect();
    let mut found = Vec::new();
    for dim in sides.iter().flat_map(|side| side.dims()) {
        let name = match split_unit(dim) {
            (kind, Some(layer), None) => dim_of_layer(kind, editor.source_layer(layer)),
            (kind, Some(layer), Some(unit)) => {
                let layer = editor.source_layer(layer);
                dim_of_unit(kind, layer, editor.source_unit(layer, unit))
            }
            (kind, ..) => kind.to_owned(),
        };
        if dim != HIDDEN && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// Each cut with the largest error of the parts that it went through, after the last sweep.
pub(crate) fn with_errors(
    mut explained: BTreeMap<String, Explained>,
    editor: &StudentEditor,
) -> BTreeMap<String, Explained> {
    let fits = editor.fits();
    for (idx, fit) in fits.iter().enumerate() {
        let later = fits.iter().skip(idx + 1);
        if later
            .into_iter()
            .any(|it| it.projections == fit.projections)
        {
            continue;
        }
        // What one expert leaves is for the next ones, too.
        if unit_of(fit).is_some() {
            continue;
        }
        let error = fit.error();
        for dim in dims(editor, fit) {
            if let Some(cut) = explained.get_mut(&dim) {
                cut.error = Some(cut.error.map_or(error, |other| other.max(error)));
            }
        }
    }
    explained
}
