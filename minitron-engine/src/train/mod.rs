//! Training: one loop for distillation and for cross entropy.
//!
//! Each step runs the student's blocks once, then the head and the loss in row chunks: every
//! chunk's gradient is taken at once and its logits freed, and what reaches the last hidden state
//! flows back through the blocks at the end. A step whose loss or gradient is not finite changes
//! nothing; its batch is not tried again, so runs stay repeatable.

mod adamw;
mod batches;
mod check;
mod correction;
mod counts;
mod events;
mod feeding;
mod footprint;
mod gradients;
mod held_out;
mod kept;
mod learner;
mod length_stage;
mod means;
mod memory;
mod metrics;
mod norms;
mod objective;
mod optimizer;
mod outcome;
mod pass;
mod progress_line;
mod rate;
mod reduction;
mod resume;
mod run;
mod saving;
mod schedule;
mod settings;
mod shard;
mod sharded;
mod state_files;
mod states;
mod step;
mod teacher;
mod weigh;

pub use adamw::AdamWSettings;
pub use correction::Correction;
pub use counts::Counts;
pub use held_out::{Best, HeldOut, HeldOutLoss, evaluate_all};
pub use learner::{Learner, Trained, WriteStudent};
pub use length_stage::{LengthStage, LongWindows, Passes};
pub use means::Means;
pub use memory::{BatchShape, StepMemory};
pub use objective::{Objective, Term};
pub use optimizer::{AdamW, MasterWeights};
pub use outcome::Outcome;
pub use rate::{StartRate, mean_at_start};
pub(crate) use resume::without_names;
pub use resume::{clear as clear_state, has_state, saved_cursor, saved_rate};
pub use run::{Run, Trainer};
pub use saving::Saving;
pub use schedule::{Schedule, ScheduleShape};
pub use settings::{Sharding, TrainSettings};
pub use shard::Shard;
pub use sharded::ShardedLayers;
pub use states::{StateTerm, TermStart, Weight};
pub use teacher::{
    CacheHeader, CacheType, CachedTeacher, Draws, InMemoryTeacher, StreamedTeacher, Teacher,
    TeacherCache, TeacherOutput,
};
