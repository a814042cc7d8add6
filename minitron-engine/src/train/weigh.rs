//! Dynamic weights of losses over a step of several passes.

use std::time::{Duration, Instant};

use tracing::debug_span;

use super::batches::Batches;
use super::held_out::Evaluation;
use super::learner::TrainState;
use super::objective::teacher_output;
use super::teacher::Teacher;
use crate::ranks::Ranks;
use minitron_core::error::Result;

/// A round without gradient that finds out what dynamic weights are in a step of several passes:
/// they follow from its values as a whole. Returns the time that the teacher took.
pub(super) fn weigh_states(
    batches: &Batches,
    group: &mut [&mut TrainState],
    mut teacher: Option<&mut (dyn Teacher + '_)>,
    ranks: Ranks,
) -> Result<Duration> {
    let mut dynamic: Vec<&mut &mut TrainState> = group
        .iter_mut()
        .filter(|state| state.learner.objective.is_dynamic())
        .collect();
    if dynamic.is_empty() {
        return Ok(Duration::ZERO);
    }
    let (_no_grad, _span) = (tch::no_grad_guard(), debug_span!("weigh").entered());
    let mut took = Duration::ZERO;
    let subjects = dynamic
        .iter()
        .map(|state| (state.learner.student, state.learner.objective));
    let mut evaluations: Vec<Evaluation> = subjects.map(Evaluation::start).collect();
    batches.each(|_, batch| {
        let begin = Instant::now();
        let objectives = dynamic.iter().map(|state| state.learner.objective);
        let output = teacher_output(objectives, teacher.as_deref_mut(), batch)?;
        took += begin.elapsed();
        evaluations
            .iter_mut()
            .try_for_each(|evaluation| evaluation.add(output.as_deref(), batch))?;
        took += output.map(|output| output.took().0).unwrap_or_default();
        Ok(())
    })?;
    for _ in batches.beyond() {
        teacher.iter().try_for_each(|teacher| teacher.stand_by())?;
        dynamic
            .iter()
            .try_for_each(|state| state.learner.student.stand_by().map(drop))?;
    }
    for (state, evaluation) in dynamic.iter_mut().zip(&mut evaluations) {
        evaluation.reduce(ranks)?;
        state.set_factors(evaluation.factors());
    }
    Ok(took)
}
