//! Training: one loop for distillation and for cross entropy.
//!
//! Each step runs the student's blocks once, then the head and the loss in row chunks: every chunk's gradient is taken
//! at once and its logits freed, and what reaches the last hidden state flows back through the blocks at the end.
//! A step whose loss or gradient is not finite changes nothing; its batch is not tried again, so runs stay repeatable.

mod events;
mod gradient;
mod held_out;
mod metrics;
mod objective;
mod optimizer;
mod resume;
mod run;
mod saving;
mod schedule;
mod settings;
mod teacher;

pub use gradient::mean_gradient;
pub use held_out::{Best, HeldOut, HeldOutLoss};
pub use objective::{Objective, Term};
pub use optimizer::{AdamW, AdamWSettings, Masters};
pub use resume::has_state;
pub use run::{Outcome, Trainer};
pub use saving::Saving;
pub use schedule::{Schedule, Shape};
pub use settings::TrainSettings;
pub use teacher::{Lesson, Loaded, Teacher};
