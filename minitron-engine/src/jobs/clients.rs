//! Which programs take a model of some sizes, said where sizes are decided.

use serde_json::{Value, json};

use super::context::Context;
use minitron_core::spec::{ClientLimit, ModelSpec, Sizes};

/// Adds to a report how the model can be split over devices, and which programs refuse it.
pub(crate) fn note(spec: &ModelSpec, sizes: &Sizes, report: &mut Value) {
    report["tensor_parallel"] = json!(spec.tensor_parallel_at(sizes));
    report["clients"] = json!(spec.client_limits(sizes));
}

/// The same for a person: one line with the programs' names, which repeats word for word over the
/// jobs of a run.
pub(crate) fn warn(context: &Context, spec: &ModelSpec, sizes: &Sizes) {
    let limits = spec.client_limits(sizes).into_iter();
    let mut clients: Vec<String> = limits.map(|limit| limit.client).collect();
    clients.dedup();
    if !clients.is_empty() {
        let message =
            "refuses the student's sizes; plan.json and `minitron inspect` say why, and what helps";
        let message = format!("{}: {message}", clients.join(", "));
        context.progress.warn(&message);
    }
}

/// Of several candidates, in one line: each program with how many it refuses, and why it refuses
/// the first.
pub(crate) fn warn_of_many<'s>(
    context: &Context,
    spec: &ModelSpec,
    candidates: impl Iterator<Item = &'s Sizes>,
) {
    let mut refused: Vec<(ClientLimit, usize)> = Vec::new();
    let mut n_candidates = 0_usize;
    for sizes in candidates {
        n_candidates += 1;
        for limit in spec.client_limits(sizes) {
            let mut known = refused.iter_mut();
            match known.find(|(known, _)| known.client == limit.client) {
                Some((_, n_refused)) => *n_refused += 1,
                None => refused.push((limit, 1)),
            }
        }
    }
    let mut words = Vec::with_capacity(refused.len());
    for (ClientLimit { client, message }, n_refused) in refused {
        words.push(format!(
            "{client}: refuses {n_refused} of {n_candidates} candidates, the first of them: \
             {message}"
        ));
    }
    if !words.is_empty() {
        context.progress.warn(&words.join("; "));
    }
}
