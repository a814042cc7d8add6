//! What a training's steps take in memory, over all of its learners.

use std::cell::RefCell;

use super::batches::windows_per_pass;
use super::learner::Learner;
use super::memory::{BatchShape, StepMemory};
use super::run::Trainer;
use crate::memory::resident_bytes;
use minitron_core::model::Transformer;
use minitron_core::spec::ModelSpec;

/// The program with libtorch, and the buffers of matrix products, at least.
const BASE_BYTES: u64 = 300 << 20;

impl Trainer<'_> {
    /// What a step will take, from shapes: every student's own, and the widest one's activations,
    /// beside what the process takes by now without its models (tokenising a text leaves some
    /// behind).
    pub fn memory(&self) -> StepMemory {
        let teacher = self.teacher.as_ref().map(RefCell::borrow);
        let teacher = teacher
            .as_ref()
            .map(|teacher| (teacher.spec(), teacher.kept_bytes()));
        let mut models = teacher.map_or(0, |(_, kept)| kept);
        for learner in self.learners {
            models = models.saturating_add(learner.student.n_bytes());
        }
        let base = BASE_BYTES.max(resident_bytes().saturating_sub(models));
        self.learners
            .iter()
            .map(|learner| self.memory_of(learner, teacher, base))
            .reduce(StepMemory::beside)
            .unwrap_or_default()
    }

    /// Windows of a pass on each rank and their width, where they are most tokens.
    fn largest_pass(&self) -> (usize, usize) {
        let own = (self.settings.batch_size, self.loader);
        let long = self
            .long
            .as_ref()
            .map(|long| (long.batch_size, long.loader));
        let passes = [own].into_iter().chain(long);
        let shapes = passes.map(|(batch_size, loader)| {
            let n_windows = windows_per_pass(batch_size, self.ranks);
            (n_windows, loader.borrow().width())
        });
        let largest = shapes.max_by_key(|(n_windows, width)| n_windows * width);
        largest.unwrap_or_default()
    }

    /// As if the learner were alone.
    fn memory_of(
        &self,
        learner: &Learner,
        teacher: Option<(&ModelSpec, u64)>,
        base: u64,
    ) -> StepMemory {
        let (n_windows, width) = self.largest_pass();
        let batch = BatchShape {
            n_windows,
            width,
            n_bytes: bytes_per_number(learner.student),
            device: learner.student.device,
        };
        let student = &learner.student.spec;
        let memory = StepMemory::of(learner.objective, student, teacher, batch, base);
        let is_written_between = self.held_out.is_some() && learner.write_best.is_some();
        let parts = (self.ranks.size(), is_written_between);
        let memory = memory.divided(self.sharding, student, batch, parts);
        match &self.correction {
            Some(correction) => memory.with_correction(correction, batch),
            None => memory,
        }
    }
}

/// Of the type that a model computes in.
fn bytes_per_number(model: &Transformer) -> usize {
    match model.parameters().first() {
        Some(parameter) => parameter.tensor.kind().elt_size_in_bytes(),
        None => 4,
    }
}
