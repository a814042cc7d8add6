//! What the student makes of text that it is not trained on.

use std::collections::BTreeSet;

use minitron_torch::read;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::counts::{Counts, mean};
use super::objective::{Objective, teacher_output};
use super::states::StateTerm;
use super::teacher::{Kept, Teacher, TeacherOutput, losses};
use crate::ranks::Ranks;
use minitron_core::error::{Error, Present, Result};
use minitron_core::model::{Site, Transformer, row_chunks};
use minitron_core::windows::{Batch, Task, Windows};

/// Text for evaluations between steps.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut<'a> {
    /// The same windows every time.
    pub windows: &'a Windows,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Steps between evaluations; a tenth of the run where not given. The last step is evaluated
    /// anyhow.
    pub every: Option<u64>,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// Its [`HeldOutLoss::value`].
    pub loss: f64,
}

/// Means over all predictions on held-out windows, of losses on states over all tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOutLoss {
    /// Negative log-likelihood of the right tokens in nats; none where there is no head.
    pub nll: Option<f64>,
    /// Each term of the objective, in its order.
    pub terms: Vec<f64>,
    /// `sum of weight · term`.
    pub objective: f64,
}

impl HeldOutLoss {
    /// What evaluations are compared by: the likelihood, or the objective where there is none.
    pub fn value(&self) -> f64 {
        self.nll.unwrap_or(self.objective)
    }
}

/// Sums of one model's losses over held-out windows.
pub(super) struct Evaluation<'a> {
    student: &'a Transformer,
    objective: &'a Objective,
    sites: BTreeSet<Site>,
    nll: f64,
    counts: Counts,
    /// By term.
    sums: Vec<f64>,
}

impl Objective {
    /// The means of every term and of the likelihood over held-out windows: no gradient, nothing
    /// drawn, row-chunked as in training.
    ///
    /// # Errors
    /// As [`Objective::backward`].
    pub fn evaluate(
        &self,
        student: &Transformer,
        teacher: Option<&mut (dyn Teacher + '_)>,
        task: Task,
        held_out: &HeldOut,
    ) -> Result<HeldOutLoss> {
        let subjects = vec![(student, self)];
        let found = Evaluation::of(subjects, teacher, task, held_out, Ranks::alone())?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Error::Internal("an evaluation of nothing".into()))
    }
}

/// The same of several models under one teacher, which is asked once for each batch.
///
/// # Errors
/// As [`Objective::backward`].
pub fn evaluate_all(
    subjects: Vec<(&Transformer, &Objective)>,
    teacher: Option<&mut (dyn Teacher + '_)>,
    task: Task,
    held_out: &HeldOut,
) -> Result<Vec<HeldOutLoss>> {
    Evaluation::of(subjects, teacher, task, held_out, Ranks::alone())
}

impl<'a> Evaluation<'a> {
    /// Of several models, batch after batch: what the teacher says to one is worked out once. Each
    /// rank sees its share of the batches.
    pub fn of(
        subjects: Vec<(&'a Transformer, &'a Objective)>,
        teacher: Option<&mut (dyn Teacher + '_)>,
        task: Task,
        held_out: &HeldOut,
        ranks: Ranks,
    ) -> Result<Vec<HeldOutLoss>> {
        let _span = tracing::info_span!("evaluate", n_models = subjects.len()).entered();
        let Some(device) = subjects.first().map(|(student, _)| student.device) else {
            return Ok(Vec::new());
        };
        let ranges = held_out.windows.batches(held_out.batch_size);
        let batch = |idx: usize| {
            let range = ranges
                .get(idx)
                .cloned()
                .present("a batch of held-out text")?;
            task.batch(held_out.windows, &range.collect::<Vec<_>>(), device)
        };
        let evaluations = Evaluation::over(subjects, teacher, (ranges.len(), &batch), ranks)?;
        evaluations.into_iter().map(Evaluation::finish).collect()
    }

    /// The sums over so many batches, of which each rank sees its share.
    pub fn over(
        subjects: Vec<(&'a Transformer, &'a Objective)>,
        mut teacher: Option<&mut (dyn Teacher + '_)>,
        (n_batches, batch): (usize, &dyn Fn(usize) -> Result<Batch>),
        ranks: Ranks,
    ) -> Result<Vec<Self>> {
        let _no_grad = tch::no_grad_guard();
        let mut evaluations: Vec<Evaluation> =
            subjects.into_iter().map(Evaluation::start).collect();
        for idx in ranks.share(n_batches) {
            let batch = batch(idx)?;
            let objectives = evaluations.iter().map(|evaluation| evaluation.objective);
            let output = teacher_output(objectives, teacher.as_deref_mut(), &batch)?;
            evaluations
                .iter_mut()
                .try_for_each(|evaluation| evaluation.add(output.as_deref(), &batch))?;
        }
        // The first rank has most.
        for _ in ranks.share(n_batches).len()..n_batches.div_ceil(ranks.size()) {
            teacher.iter().try_for_each(|teacher| teacher.stand_by())?;
            evaluations
                .iter()
                .try_for_each(|evaluation| evaluation.student.stand_by().map(drop))?;
        }
        for evaluation in &mut evaluations {
            evaluation.reduce(ranks)?;
        }
        Ok(evaluations)
    }

    /// Before the first batch.
    pub fn start((student, objective): (&'a Transformer, &'a Objective)) -> Self {
        let sites = objective
            .states
            .iter()
            .flat_map(StateTerm::student_sites)
            .collect();
        let sums = vec![0.0; objective.labels().count()];
        Evaluation {
            student,
            objective,
            sites,
            nll: 0.0,
            counts: Counts::default(),
            sums,
        }
    }

    /// Adds a batch.
    pub fn add(&mut self, output: Option<&(dyn TeacherOutput + '_)>, batch: &Batch) -> Result<()> {
        let mut kept = Kept::at(&self.sites);
        let hidden_bte = self.student.hidden(batch.input(), &mut kept, None)?;
        let counts = Counts::of(batch)?;
        let mut on_states = Vec::new();
        if let Some(output) = output {
            for term in &self.objective.states {
                let value = term.value(
                    &kept.states,
                    |site| output.states(site),
                    batch.compared_bt(),
                )?;
                on_states.push(value);
            }
        }
        self.counts = self.counts.plus(counts);
        let mut on_logits = Vec::new();
        if self.student.has_head() {
            on_logits = self.rows(output, batch, &hidden_bte)?;
        }
        self.take(on_states, on_logits, counts)
    }

    /// Adds what a batch gave, which is read at once: of every chunk of rows each term's sum and
    /// the likelihood's.
    fn take(
        &mut self,
        on_states: Vec<Tensor>,
        on_logits: Vec<Tensor>,
        counts: Counts,
    ) -> Result<()> {
        let n_on_states = on_states.len();
        let scalars: Vec<Tensor> = on_states.into_iter().chain(on_logits).collect();
        let read = read(&scalars)?;
        let (on_states, on_logits) = read.split_at(n_on_states.min(read.len()));
        let n_terms = self.objective.terms.len();
        let sums = self.sums.iter_mut().skip(n_terms);
        for (sum, value) in sums.zip(on_states) {
            *sum += value * counts.tokens as f64;
        }
        for of_chunk in on_logits.chunks_exact(n_terms + 1) {
            for (sum, value) in self.sums.iter_mut().zip(of_chunk.iter().take(n_terms)) {
                *sum += value;
            }
            self.nll += of_chunk.last().copied().present("a chunk's likelihood")?;
        }
        Ok(())
    }

    /// What each chunk of a batch's rows loses by every term on logits, and by the likelihood.
    fn rows(
        &self,
        output: Option<&(dyn TeacherOutput + '_)>,
        batch: &Batch,
        hidden_bte: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let hidden_ne = batch.rows(hidden_bte)?;
        let (vocab, device) = (self.student.spec.options.vocab, self.student.device);
        let mut sums = Vec::new();
        for (start, len) in row_chunks(batch.n_rows(), vocab, device) {
            let labels_n = batch.labels_n.f_narrow(0, start, len)?;
            let student_nv = self.student.logits(&hidden_ne.f_narrow(0, start, len)?)?;
            let teacher_nv = self
                .objective
                .teacher_rows(output, start, len, &student_nv)?;
            for term in &self.objective.terms {
                let loss_n = losses(term, &student_nv, teacher_nv.as_ref(), &labels_n)?;
                sums.push(loss_n.f_sum(Kind::Double)?);
            }
            let logits_nv = student_nv.f_to_kind(Kind::Float)?;
            let nll_n = logits_nv.f_cross_entropy_loss(
                &labels_n,
                None::<Tensor>,
                Reduction::None,
                -100,
                0.0,
            )?;
            sums.push(nll_n.f_sum(Kind::Double)?);
        }
        Ok(sums)
    }

    /// Takes in what the other ranks have seen.
    pub fn reduce(&mut self, ranks: Ranks) -> Result<()> {
        if !ranks.has_others() {
            return Ok(());
        }
        let mut numbers = self.sums.clone();
        numbers.push(self.nll);
        self.counts = self.counts.reduced(ranks)?;
        ranks.add_up(&mut numbers)?;
        self.nll = numbers.pop().unwrap_or_default();
        self.sums = numbers;
        Ok(())
    }

    /// Means of all terms over what was seen.
    fn means(&self) -> Vec<f64> {
        let n_on_logits = self.objective.terms.len().min(self.sums.len());
        let (on_logits, on_states) = self.sums.split_at(n_on_logits);
        let of_logits = on_logits
            .iter()
            .map(|sum| mean(*sum, self.counts.predictions));
        let of_states = on_states.iter().map(|sum| mean(*sum, self.counts.tokens));
        of_logits.chain(of_states).collect()
    }

    /// What losses on states are multiplied by, from what was seen.
    pub fn factors(&self) -> Vec<f64> {
        self.objective.factors(&self.means())
    }

    /// The mean of the first loss on logits; none where nothing was predicted.
    pub fn first_mean(&self) -> Option<f64> {
        let has_any = self.counts.predictions > 0 && !self.objective.terms.is_empty();
        self.means().first().copied().filter(|_| has_any)
    }

    fn finish(self) -> Result<HeldOutLoss> {
        let Objective { terms, .. } = self.objective;
        if self.counts.predictions == 0 && !terms.is_empty() {
            return Err(Error::Data(
                "the held-out text has nothing to predict".into(),
            ));
        }
        let means = self.means();
        let weights = terms.iter().map(|term| term.weight).chain(self.factors());
        let objective = weights
            .zip(&means)
            .map(|(weight, mean)| weight * mean)
            .sum();
        let has_nll = self.student.has_head() && self.counts.predictions > 0;
        let nll = has_nll.then(|| mean(self.nll, self.counts.predictions));
        Ok(HeldOutLoss {
            nll,
            terms: means,
            objective,
        })
    }
}
