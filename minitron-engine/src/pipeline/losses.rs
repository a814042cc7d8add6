//! From the losses that a recipe names to the objective that training minimises.

use serde_json::Value;

use super::context::Context;
use crate::train::{LiftStart, Objective, StateTerm, Term, Weight};
use minitron_core::contract::{LogitLoss, StateLoss};
use minitron_core::error::{Error, Result};
use minitron_core::registry::{Kind, PluginSpec};
use minitron_core::spec::ModelSpec;

/// The losses by name, on logits and on states.
pub(super) fn objective(
    context: &Context,
    losses: &[PluginSpec],
    student: &ModelSpec,
    teacher: Option<&ModelSpec>,
    kept_hidden: Option<&[usize]>,
) -> Result<Objective> {
    let start = LiftStart {
        device: context.device,
        kind: context.kind,
        kept_hidden,
        seed: context.seed,
    };
    let mut objective = Objective::default();
    for (idx, spec) in losses.iter().enumerate() {
        let at = |e: Error| e.at(format!("losses[{idx}]"));
        let (tag, mut spec) = (spec.tag.clone(), spec.clone());
        let label = match spec.take("as") {
            Some(label) => label
                .as_str()
                .map_or_else(|| label.to_string(), str::to_owned),
            None => tag.clone(),
        };
        if objective.labels().any(|other| other == label) {
            return Err(at(Error::Recipe(format!(
                "`{label}` is given twice; name one of them with as=LABEL"
            ))));
        }
        let (weight, alpha) = (spec.take("weight"), spec.take("alpha"));
        if !context
            .registry
            .of_kind(Kind::StateLoss)
            .any(|descriptor| descriptor.tag == tag)
        {
            if alpha.is_some() {
                return Err(at(Error::Recipe(format!(
                    "alpha: `{tag}` is a loss on logits; give it a weight"
                ))));
            }
            known(context, &tag).map_err(at)?;
            let loss = context
                .registry
                .build::<dyn LogitLoss>(&spec)
                .map_err(at)?
                .into();
            objective.terms.push(Term {
                label,
                weight: factor("weight", weight.as_ref()).map_err(at)?,
                loss,
            });
            continue;
        }
        let weight = state_weight(weight.as_ref(), alpha.as_ref()).map_err(at)?;
        let loss = context.registry.build::<dyn StateLoss>(&spec).map_err(at)?;
        let Some(teacher) = teacher else {
            return Err(at(Error::Recipe(format!(
                "`{tag}` compares with a teacher, and none is given"
            ))));
        };
        objective
            .states
            .push(StateTerm::new(label, weight, loss, student, teacher, start).map_err(at)?);
    }
    objective.check()?;
    Ok(objective)
}

/// An unknown name is answered with the losses of both kinds.
fn known(context: &Context, tag: &str) -> Result<()> {
    let of = |kind| {
        context
            .registry
            .of_kind(kind)
            .map(|descriptor| descriptor.tag)
    };
    match of(Kind::Loss).any(|known| known == tag) {
        true => Ok(()),
        false => Err(Error::unknown(
            "loss plugin",
            tag,
            of(Kind::Loss).chain(of(Kind::StateLoss)),
        )),
    }
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
