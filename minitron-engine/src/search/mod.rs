//! `search`: the best small shape (arXiv 2407.14679, section 2.3). Candidates come from a grid by
//! sizes alone, are screened as views, and trained shortly in rungs, from which the better half
//! goes on. How alike two orders of them are says what a screening was worth.

mod by_blocks;
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
mod workers;

pub use cost::CountPolynomial;
pub use grid::{Candidate, Grid, GridAxis, Keep, Survey, Within};
pub use halving::{Halving, Rung};
pub use job::search;
pub use options::SearchOptions;
pub use order::{kendall, ranks, settled, spearman};
pub use predicate::Predicate;
pub use size_list::SizeList;
