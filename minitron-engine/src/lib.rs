//! The engine of minitron: what brings models, data and plugins together.
//!
//! Data flows one way, and each room looks left only. The core's rooms are left of all of these.
//!
//! | room | holds |
//! |---|---|
//! | [`memory`] | what the process takes |
//! | [`chat`] | conversations as text by the model's own template, and what the assistant said |
//! | [`data`] | text to tokens to windows, in a deterministic order |
//! | [`score`] | one forward pass, shown to the scorers of all metrics |
//! | [`train`] | objective, optimiser, schedule, loop, resume |
//! | [`search`] | candidates from sizes alone, successive halving, orders |
//! | [`pipeline`] | the jobs behind the commands, recipes, run folders |
//! | [`report`] | what finished and running jobs left, as data |

pub mod chat;
pub mod data;
pub mod memory;
pub mod pipeline;
pub mod report;
pub mod score;
pub mod search;
pub mod train;
