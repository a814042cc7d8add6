//! From scores to a plan: rankings, legal sizes, kept units, and why these. Nothing here runs a
//! model.

mod absent;
mod advice;
mod apart;
mod axis_sizes;
mod blocks;
mod checked;
mod explain;
mod ranking;
mod rounds;
mod saved;
mod space;
mod target;
mod ties;

pub use advice::flags;
pub use axis_sizes::AxisSizes;
pub use blocks::{BlockChoice, BlockChoices, BlockScores, Timed};
pub use explain::{BlockScore, Borderline, Cut, Explained, UnitScore};
pub use ranking::{Ranking, Rankings};
pub use rounds::schedule;
pub use saved::Plan;
pub use space::Space;
pub use target::{Bytes, Count, Target, parse_budget, parse_bytes, parse_count};
pub use ties::{Led, Queries, Ties};
