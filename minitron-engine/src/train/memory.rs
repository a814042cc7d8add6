//! How much memory a training step takes, from shapes alone. N rows of a batch, E embed, F ffn, H
//! heads, K head dim, V vocab.

use serde::Serialize;
use tch::Device;

use super::correction::Correction;
use super::objective::Objective;
use super::settings::Sharding;
use crate::memory::mib;
use minitron_core::model::row_chunks;
use minitron_core::model::{Port, Site};
use minitron_core::spec::{HIDDEN, ModelSpec, split_dim};

/// Logits of a chunk and their log-softmax, the teacher's two, and one more: a loss's product,
/// later a gradient.
const COPIES_OF_LOGITS: u64 = 5;
/// Copies of the rows that predict: the student's, their gradient and its product, the teacher's.
const COPIES_OF_ROWS: u64 = 5;
/// Allocators keep some of what was freed.
const SLACK: f64 = 1.1;

/// Bytes at the peak of a step, by what takes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StepMemory {
    /// What the process took before.
    pub base: u64,
    /// The student's weights, gradients, two moments each in f32, and masters where it computes in
    /// less.
    pub student: u64,
    /// What the teacher keeps, and the inside of its widest layer.
    pub teacher: u64,
    /// What the backward pass needs of the layers.
    pub activations: u64,
    /// One chunk of logits, and the rows they are computed from.
    pub logits: u64,
    /// What the first rank holds, in place of activations and logits, while it writes a student
    /// that is kept in parts: all of it, where a step has its whole layers.
    pub writing: u64,
}

/// One batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchShape {
    /// Windows.
    pub n_windows: usize,
    /// Tokens of the longest.
    pub width: usize,
    /// Bytes of a number that models compute in.
    pub n_bytes: usize,
    /// Where they compute.
    pub device: Device,
}

impl StepMemory {
    /// For a student, what its teacher keeps (bytes) and its shapes, and one batch.
    pub fn of(
        objective: &Objective,
        student: &ModelSpec,
        teacher: Option<(&ModelSpec, u64)>,
        batch: BatchShape,
        base: u64,
    ) -> Self {
        let n_rows = (batch.n_windows as u64).saturating_mul(batch.width as u64);
        let wide = batch.n_bytes as u64;
        let row_bytes = n_rows.saturating_mul(wide);
        let hidden = student.size(HIDDEN) as u64;
        let n_layers = student.n_layers() as u64;
        let held_numbers = match objective.recompute {
            true => (n_layers + 1)
                .saturating_mul(hidden)
                .saturating_add(widest(student)),
            false => held(student).fold(0, u64::saturating_add),
        };
        // Kept states of both, and the student's lifted ones; what a loss makes of them is its own.
        let mut compared = 0_u64;
        for term in &objective.states {
            let ours = term.student_sites().map(|site| width_at(student, site));
            let theirs = teacher.into_iter().flat_map(|(spec, _)| {
                (term.teacher_sites()).map(move |site| 2 * width_at(spec, site))
            });
            compared = ours.chain(theirs).fold(compared, u64::saturating_add);
        }
        let vocab = student.options.vocab;
        let chunk = row_chunks(n_rows as i64, vocab, batch.device)
            .next()
            .map_or(0, |(_, len)| len.unsigned_abs());
        let logits = match objective.terms.is_empty() {
            true => 0,
            false => COPIES_OF_LOGITS * 4 * chunk.saturating_mul(vocab as u64),
        };
        let masters = if batch.n_bytes < 4 { 4 } else { 0 };
        let teacher = teacher.map_or(0, |(spec, kept)| {
            kept.saturating_add(row_bytes.saturating_mul(widest(spec) / 2))
        });
        StepMemory {
            base,
            student: student.n_params().saturating_mul(2 * wide + 8 + masters),
            teacher,
            activations: row_bytes.saturating_mul(held_numbers.saturating_add(compared)),
            logits: logits.saturating_add(row_bytes.saturating_mul(COPIES_OF_ROWS * hidden)),
            writing: 0,
        }
    }

    /// The same where so many ranks keep parts; the student is written at the end, when nobody
    /// needs moments any more, or between steps too.
    pub fn divided(
        self,
        sharding: Sharding,
        student: &ModelSpec,
        batch: BatchShape,
        (n_ranks, is_written_between): (usize, bool),
    ) -> Self {
        let parts = match sharding {
            Sharding::Layers if n_ranks > 1 => self.with_sharded_layers(student, batch, n_ranks),
            Sharding::Optimizer => self.with_shards(student, batch, n_ranks),
            Sharding::None | Sharding::Layers => self,
        };
        let moments = student.n_params().saturating_mul(8) / n_ranks.max(1) as u64;
        let gone = if is_written_between { 0 } else { moments };
        StepMemory {
            writing: parts.writing.saturating_sub(gone),
            ..parts
        }
    }

    /// Bytes of a model that is held in memory to be asked, of whose layers each of so many ranks
    /// keeps a part: those, and two whole layers.
    pub fn held_model(spec: &ModelSpec, n_bytes: usize, n_ranks: usize) -> u64 {
        let (layers, widest) = layer_params(spec);
        let n_params = match n_ranks {
            0 | 1 => spec.n_params(),
            n => spec.n_params() - layers + layers.div_ceil(n as u64) + 2 * widest,
        };
        n_params.saturating_mul(n_bytes as u64)
    }

    /// The same where moments and masters of the student are divided among so many ranks.
    fn with_shards(self, student: &ModelSpec, batch: BatchShape, n_ranks: usize) -> Self {
        let masters = if batch.n_bytes < 4 { 4 } else { 0 };
        let whole = student.n_params().saturating_mul(8 + masters);
        let own = whole.div_ceil(n_ranks.max(1) as u64);
        let writing = match batch.device {
            Device::Cpu if n_ranks > 1 => student.n_params().saturating_mul(masters),
            _ => 0,
        };
        StepMemory {
            student: self.student.saturating_sub(whole - own),
            writing,
            ..self
        }
    }

    /// The same where of every layer each of so many ranks keeps a part of the weights and
    /// gradients too, and at most two are whole: one that runs, and one that comes or whose
    /// gradient goes.
    fn with_sharded_layers(self, student: &ModelSpec, batch: BatchShape, n_ranks: usize) -> Self {
        let parts = self.with_shards(student, batch, n_ranks);
        let (layers, widest) = layer_params(student);
        let both = 2 * batch.n_bytes as u64;
        let whole = layers.saturating_mul(both);
        let own = whole.div_ceil(n_ranks.max(1) as u64);
        let here = widest.saturating_mul(2 * both);
        let written = match batch.device {
            Device::Cpu => layers.saturating_mul(batch.n_bytes.max(4) as u64),
            _ => 0,
        };
        StepMemory {
            student: parts.student.saturating_sub(whole) + own + here,
            writing: written.saturating_sub(here),
            ..parts
        }
    }

    /// The same with a teacher that is trained too, after the student in every batch.
    pub fn with_correction(self, correction: &Correction, batch: BatchShape) -> Self {
        let teacher = &correction.model.spec;
        let alone = StepMemory::of(correction.objective, teacher, None, batch, 0);
        let weights = teacher.n_params().saturating_mul(batch.n_bytes as u64);
        StepMemory {
            teacher: self
                .teacher
                .saturating_add(alone.student.saturating_sub(weights)),
            activations: self.activations.max(alone.activations),
            ..self
        }
    }

    /// Two students that take turns under one teacher.
    pub fn beside(self, other: StepMemory) -> Self {
        StepMemory {
            base: self.base.max(other.base),
            student: self.student.saturating_add(other.student),
            teacher: self.teacher.max(other.teacher),
            activations: self.activations.max(other.activations),
            logits: self.logits.max(other.logits),
            writing: self.writing.saturating_add(other.writing),
        }
    }

    /// All of it, with what allocators keep back.
    pub fn total(&self) -> u64 {
        let comes = self.activations.saturating_add(self.logits);
        let step = [self.student, self.teacher, comes.max(self.writing)]
            .into_iter()
            .fold(0, u64::saturating_add);
        self.base.saturating_add((step as f64 * SLACK) as u64)
    }

    /// Where a step takes more than is free: what to do. No refusal, since the system may make
    /// room.
    pub fn beyond(&self, free: u64) -> Option<String> {
        let needed = self.total().saturating_sub(self.base);
        (needed > free).then(|| {
            format!(
                "memory: only {} are free, so the system may end this run; smaller batches (with \
                 accumulate), recompute, stream_teacher or a shorter seq_len take less",
                mib(free)
            )
        })
    }

    /// One line.
    pub fn says(&self) -> String {
        format!(
            "memory: about {} at the peak of a step (student {}, teacher {}, activations {}, \
             logits {})",
            mib(self.total()),
            mib(self.student),
            mib(self.teacher),
            mib(self.activations),
            mib(self.logits)
        )
    }
}

/// Channels of a site: those of the stream where it is not inside a mixer, or else no more than the
/// widest thing that the layer's mixers show.
fn width_at(spec: &ModelSpec, site: Site) -> u64 {
    let hidden = spec.size(HIDDEN) as u64;
    let Site::Inside { at, port } = site else {
        return hidden;
    };
    if [Port::STREAM, Port::INPUT, Port::OUTPUT].contains(&port) {
        return hidden;
    }
    let of_layer = spec.dims.values().filter(|dim| {
        let layer = split_dim(&dim.name).1;
        layer == at.layer() && !spec.observed_at(&dim.name).is_empty()
    });
    let widths = of_layer.map(|dim| dim.size * spec.unit_width(&dim.name).unwrap_or(1));
    widths.max().map_or(hidden, |width| width as u64)
}

/// Parameters of all layers, and of the widest one.
fn layer_params(spec: &ModelSpec) -> (u64, u64) {
    let sizes = (0..spec.n_layers()).map(|layer| spec.n_layer_params(layer));
    (sizes.clone().sum(), sizes.max().unwrap_or(0))
}

/// Numbers per row that each layer's backward pass needs.
fn held(spec: &ModelSpec) -> impl Iterator<Item = u64> {
    (0..spec.n_layers()).map(|layer| spec.held_in(layer))
}

/// Those of the layer that needs most.
fn widest(spec: &ModelSpec) -> u64 {
    held(spec).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_student_in_parts_is_whole_while_it_is_written() {
        let step = StepMemory {
            base: 1000,
            student: 100,
            teacher: 50,
            activations: 20,
            logits: 10,
            writing: 0,
        };
        let of = |writing| StepMemory { writing, ..step }.total();
        assert_eq!([of(0), of(30), of(130)], [1198, 1198, 1308]);
    }

    #[test]
    fn a_step_that_does_not_fit_beside_what_is_there_is_said_and_no_other() {
        let step = StepMemory {
            base: 500 << 20,
            student: 100 << 20,
            ..StepMemory::default()
        };
        // What the process takes by then is not taken from what is free.
        assert_eq!(step.beyond(111 << 20), None);
        let said = step.beyond(109 << 20).unwrap();
        assert!(
            said.contains("only 109MiB are free") && said.contains("recompute"),
            "{said}"
        );
    }

    #[test]
    fn students_side_by_side_share_the_teacher_and_the_widest_activations() {
        let one = StepMemory {
            base: 3,
            student: 10,
            teacher: 5,
            activations: 7,
            logits: 2,
            writing: 0,
        };
        let two = StepMemory {
            student: 20,
            activations: 4,
            ..one
        };
        assert_eq!(one.beside(two), StepMemory { student: 30, ..one });
    }
}
