//! `search`: candidates on a grid from sizes alone, what they cost, which are legal; screened as
//! views, then ranked by short distillation in rungs, and in which order they end (arXiv
//! 2407.14679, section 2.3).

mod cost;
mod field;
mod grid;
mod halving;
mod job;
mod open;
mod options;
mod order;
mod predicate;
mod prepare;
mod record;
mod size_list;
mod winner;

pub use cost::CountPolynomial;
pub use grid::{Candidate, Grid, GridAxis, Keep, Survey, Within};
pub use halving::{Halving, Rung};
pub use job::search;
pub use options::SearchOptions;
pub use order::{kendall, ranks, settled, spearman};
pub use predicate::Predicate;
pub use size_list::SizeList;
