//! One step of one learner, and what steps come to.

use serde_json::{Map, Value, json};
use tch::Tensor;

use super::correction::Correction;
use super::counts::Counts;
use super::means::{Means, PassValues, read_all};
use super::norms::GradientNorms;
use super::objective::Objective;
use super::optimizer::AdamW;
use crate::ranks::Ranks;
use minitron_core::error::Result;

/// A step under way or done.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// What its losses are averaged over, all passes together.
    pub counts: Counts,
    /// Whether no loss has anything to average over: the step changes nothing.
    pub is_empty: bool,
    /// The weighted sum of all losses; NaN of an empty step.
    pub loss: f64,
    /// L2 norm of the gradient.
    pub norm: f64,
    /// Loss and gradient norm of a teacher under correction.
    pub teacher: Option<(f64, f64)>,
    /// Of losses on states, where weights follow from the whole step.
    pub factors: Option<Vec<f64>>,
    terms: Vec<f64>,
    /// Passes whose values are not read yet, and those of a teacher under correction.
    unread: Vec<PassValues>,
    unread_of_teacher: Vec<PassValues>,
}

impl Step {
    /// Before the first pass of a step that is averaged over so much. A term with nothing to
    /// average over has no value.
    pub fn begin(objective: &Objective, counts: Counts) -> Self {
        let mut terms = vec![empty_sum(counts.predictions); objective.terms.len()];
        terms.extend(vec![empty_sum(counts.tokens); objective.states.len()]);
        let is_empty = !objective.counts_any(counts);
        let loss = if is_empty { f64::NAN } else { 0.0 };
        Step {
            counts,
            is_empty,
            loss,
            terms,
            ..Step::default()
        }
    }

    /// Takes in what a pass gave, without waiting for it.
    pub fn push(&mut self, values: PassValues) {
        self.unread.push(values);
    }

    /// The same of a teacher under correction.
    pub fn push_of_teacher(&mut self, values: PassValues) {
        self.teacher.get_or_insert_default();
        self.unread_of_teacher.push(values);
    }

    /// Reads what passes have given since, and with it `further` scalars, which come back: the host
    /// waits for the device once, however many there are.
    pub fn settle(&mut self, further: Vec<Tensor>) -> Result<Vec<f64>> {
        let unread = std::mem::take(&mut self.unread);
        let of_teacher = std::mem::take(&mut self.unread_of_teacher);
        let mut read = read_all(unread.iter().chain(&of_teacher), further)?;
        for values in &unread {
            self.add(&values.means(&mut read)?);
        }
        for values in &of_teacher {
            let (loss, _) = self.teacher.get_or_insert_default();
            *loss += values.means(&mut read)?.total;
        }
        Ok(read.collect())
    }

    /// Reads losses and gradient norms, which decide whether the step is applied: the one time that
    /// the host waits for the device in it.
    pub fn measure(
        &mut self,
        optimizer: &AdamW,
        correction: Option<&Correction>,
        ranks: Ranks,
    ) -> Result<()> {
        let own = optimizer.gradient_norms(0)?;
        let of_teacher = match correction.filter(|_| self.teacher.is_some()) {
            Some(correction) => Some(correction.gradient_norms(optimizer)?),
            None => None,
        };
        let all = [Some(&own), of_teacher.as_ref()].into_iter().flatten();
        let norms = all.flat_map(GradientNorms::tensors).collect();
        let mut read = self.settle(norms)?.into_iter();
        self.norm = own.whole_norm(&mut read, ranks)?;
        if let (Some(of_teacher), Some((_, norm))) = (of_teacher, &mut self.teacher) {
            *norm = of_teacher.whole_norm(&mut read, ranks)?;
        }
        Ok(())
    }

    fn add(&mut self, means: &Means) {
        self.loss += means.total;
        self.terms
            .iter_mut()
            .zip(&means.terms)
            .for_each(|(sum, part)| *sum += part);
    }

    /// What adds up over ranks: losses, and the terms that they are sums of.
    pub fn numbers(&self) -> Vec<f64> {
        let (of_teacher, _) = self.teacher.unwrap_or_default();
        let mut numbers = vec![self.loss, of_teacher];
        numbers.extend(&self.terms);
        numbers
    }

    /// Takes [`Step::numbers`] back.
    pub fn set_numbers(&mut self, numbers: &[f64]) {
        let [loss, of_teacher, terms @ ..] = numbers else {
            return;
        };
        self.loss = *loss;
        if let Some((loss, _)) = &mut self.teacher {
            *loss = *of_teacher;
        }
        self.terms = terms.to_vec();
    }

    /// Whether the weights were changed: otherwise the step is skipped.
    pub fn is_applied(&self) -> bool {
        let (loss, norm) = self.teacher.unwrap_or_default();
        [self.loss, self.norm, loss, norm]
            .into_iter()
            .all(f64::is_finite)
    }

    /// What the gradients of the model and of a teacher under correction are multiplied by, so that
    /// the norm of each is `clip` at most.
    pub fn scales(&self, clip: f64) -> [f64; 2] {
        let of_teacher = self.teacher.map_or(0.0, |(_, norm)| norm);
        [self.norm, of_teacher].map(|norm| if norm > clip { clip / norm } else { 1.0 })
    }

    /// What the mean of several steps weighs it by.
    pub fn weight(&self, objective: &Objective) -> f64 {
        (if objective.terms.is_empty() {
            self.counts.tokens
        } else {
            self.counts.predictions
        }) as f64
    }

    /// Adds what it was averaged over and its terms to a record: `n_predictions` where there are
    /// losses on logits, `n_states` where there are some on states.
    pub fn record(&self, objective: &Objective, into: &mut Map<String, Value>) {
        if !objective.terms.is_empty() {
            into.insert("n_predictions".into(), json!(self.counts.predictions));
        }
        if !objective.states.is_empty() {
            into.insert("n_states".into(), json!(self.counts.tokens));
        }
        for (label, mean) in objective.labels().zip(&self.terms) {
            into.insert(format!("loss/{label}"), json!(mean));
        }
        if let Some((loss, norm)) = self.teacher {
            into.insert("teacher/loss".into(), json!(loss));
            into.insert("teacher/grad_norm".into(), json!(norm));
        }
    }
}

/// A step's loss, and what it weighs in a mean of several; records of older runs do not say.
pub(super) type Weighed = (f64, Option<f64>);

/// The mean of a tenth of all steps, the last ones: over their predictions, or tokens, where all of
/// them say how many.
pub(super) fn recent_loss(steps: &[Weighed]) -> Option<f64> {
    let tail = steps.len().div_ceil(10).max(1);
    let tail = steps.split_at(steps.len().saturating_sub(tail)).1;
    let is_weighed = tail.iter().all(|(_, weight)| weight.is_some());
    let (mut sum, mut total) = (0.0, 0.0);
    for (loss, weight) in tail {
        let weight = weight.filter(|_| is_weighed).unwrap_or(1.0);
        sum += loss * weight;
        total += weight;
    }
    (total > 0.0).then(|| sum / total)
}

/// What a sum over so many begins with.
fn empty_sum(n: i64) -> f64 {
    if n > 0 { 0.0 } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_the_last_steps_is_over_their_predictions() {
        let steps = |weights: [Option<f64>; 2]| {
            let earlier = std::iter::repeat_n((9.0, Some(1.0)), 9).collect::<Vec<_>>();
            [earlier, vec![(1.0, weights[0]), (4.0, weights[1])]].concat()
        };
        assert_eq!(recent_loss(&steps([Some(2.0), Some(1.0)])), Some(2.0));
        // Records of an older run among them: every step counts the same.
        assert_eq!(recent_loss(&steps([None, Some(1.0)])), Some(2.5));
        assert_eq!(recent_loss(&[]), None);
        assert_eq!(recent_loss(&[(0.0, Some(0.0))]), None);
    }
}
