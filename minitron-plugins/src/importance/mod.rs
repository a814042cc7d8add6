//! Metrics: how much each unit matters.

mod activation;
mod block_influence;
