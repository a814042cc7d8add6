//! From the losses that a recipe names to the objective that training minimises.

use serde_json::Value;

use crate::jobs::context::Context;
use crate::train::{Objective, StateTerm, Term, TermStart, Weight};
use minitron_core::contract::{LogitLoss, StateLoss};
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::KeptUnits;
use minitron_core::registry::{Kind, PluginSpec};
use minitron_core::spec::ModelSpec;

/// The losses by name, on logits and on states.
pub(crate) fn objective(
    context: &Context,
    losses: &[PluginSpec],
    student: &ModelSpec,
    teacher: Option<&ModelSpec>,
    kept: Option<&KeptUnits>,
) -> Result<Objective> {
    let start = TermStart {
        device: context.device,
        kind: context.kind,
        kept,
        seed: context.seed,
    };
    let mut objective = Objective::default();
    for (idx, spec) in losses.iter().enumerate() {
        let added = add(
            context,
            &mut objective,
            spec.clone(),
            (student, teacher),
            start,
        );
        added.map_err(|e| e.at(format!("losses[{idx}]")))?;
    }
    objective.check()?;
    Ok(objective)
}

/// Adds a loss to the objective.
fn add(
    context: &Context,
    objective: &mut Objective,
    mut spec: PluginSpec,
    (student, teacher): (&ModelSpec, Option<&ModelSpec>),
    start: TermStart,
) -> Result<()> {
    let label = match spec.take("as") {
        Some(Value::String(label)) => label,
        Some(label) => label.to_string(),
        None => spec.tag.clone(),
    };
    if objective.labels().any(|other| other == label) {
        return Err(Error::Recipe(format!(
            "`{label}` is given twice; name one of them with as=LABEL"
        )));
    }
    let (weight, alpha) = (spec.take("weight"), spec.take("alpha"));
    let tag = &spec.tag;
    if !has_loss(context, Kind::StateLoss, tag) {
        if alpha.is_some() {
            return Err(Error::Recipe(format!(
                "alpha: `{tag}` is a loss on logits; give it a weight"
            )));
        }
        known(context, tag)?;
        let loss = context.registry.build::<dyn LogitLoss>(&spec)?.into();
        let weight = factor("weight", weight.as_ref())?;
        objective.terms.push(Term {
            label,
            weight,
            loss,
        });
        return Ok(());
    }
    let weight = state_weight(weight.as_ref(), alpha.as_ref())?;
    let loss = context.registry.build::<dyn StateLoss>(&spec)?;
    let Some(teacher) = teacher else {
        return Err(Error::Recipe(format!(
            "`{tag}` compares with a teacher, and none is given"
        )));
    };
    let term = StateTerm::new(label, weight, loss, student, teacher, start)?;
    objective.states.push(term);
    Ok(())
}

fn has_loss(context: &Context, kind: Kind, tag: &str) -> bool {
    let mut losses = context.registry.of_kind(kind);
    losses.any(|descriptor| descriptor.tag == tag)
}

/// An unknown name is answered with the losses of both kinds.
fn known(context: &Context, tag: &str) -> Result<()> {
    if has_loss(context, Kind::Loss, tag) {
        return Ok(());
    }
    let on_logits = context.registry.of_kind(Kind::Loss);
    let on_states = context.registry.of_kind(Kind::StateLoss);
    let tags = on_logits.chain(on_states).map(|descriptor| descriptor.tag);
    Err(Error::unknown("loss plugin", tag, tags))
}

fn factor(key: &str, value: Option<&Value>) -> Result<f64> {
    let Some(value) = value else { return Ok(1.0) };
    match value.as_f64().filter(|w| w.is_finite() && *w > 0.0) {
        Some(weight) => Ok(weight),
        None => Err(Error::Recipe(format!(
            "{key}: expected a positive number, got {value}"
        ))),
    }
}

/// `weight` or `alpha` as a number; `alpha=dynamic`, perhaps with a weight, as a share of the
/// losses on logits.
fn state_weight(weight: Option<&Value>, alpha: Option<&Value>) -> Result<Weight> {
    match alpha {
        Some(Value::String(word)) if word == "dynamic" => {
            Ok(Weight::Dynamic(factor("weight", weight)?))
        }
        Some(Value::String(word)) => Err(Error::Recipe(format!(
            "alpha: expected `dynamic` or a positive number, got `{word}`"
        ))),
        _ => Ok(Weight::Fixed(
            factor("weight", weight)? * factor("alpha", alpha)?,
        )),
    }
}
