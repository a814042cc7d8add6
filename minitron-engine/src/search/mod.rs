//! From sizes alone to a ranking: candidates on a grid, what they cost, how many go on, in which
//! order they end.

mod cost;
mod grid;
mod halving;
mod order;
mod predicate;

pub use cost::CountPolynomial;
pub use grid::{Candidate, Grid, GridAxis, Keep, Survey, Within};
pub use halving::{Halving, Rung};
pub use order::{kendall, ranks, settled, spearman};
pub use predicate::Predicate;
