//! From scores to a plan: rankings, legal sizes, kept units. Integers only; nothing here runs a model.

mod ranking;
mod saved;
mod space;
mod target;

pub use ranking::{Ranking, Rankings};
pub use saved::Plan;
pub use space::{AxisSizes, Space};
pub use target::{Bytes, Count, Target, parse_budget, parse_bytes, parse_count};
