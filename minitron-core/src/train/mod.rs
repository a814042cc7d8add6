//! Training: one loop for distillation and for cross entropy.
//!
//! Each step runs the student's blocks once, then the head and the loss in row chunks: every chunk's gradient is taken
//! at once and its logits freed, and what reaches the last hidden state flows back through the blocks at the end.

mod gradient;
mod objective;
mod optimizer;
mod resume;
mod run;
mod schedule;
mod settings;
mod teacher;

pub use gradient::mean_gradient;
pub use objective::{Objective, Term};
pub use optimizer::{AdamW, AdamWSettings, Masters};
pub use resume::{has_state, saved_cursor};
pub use run::{Outcome, Trainer};
pub use schedule::Schedule;
pub use settings::TrainSettings;
pub use teacher::{Lesson, Loaded, Teacher};
