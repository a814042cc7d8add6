//! Statements that hold without PyTorch, on tiny models of every family.

/// A step over its passes: what is averaged over what.
mod averages;
/// Windows of conversations: what counts, what stays whole, what attention reaches.
mod conversations;
/// What training is fed with: order, mixtures, resuming.
mod data;
/// Models and texts at the edge of what numbers can hold.
mod degenerate;
/// Sequences of different lengths side by side.
mod filling;
/// Continuations with and without the key/value cache.
mod generation;
/// What healings do to a student.
mod healing;
/// What a training run keeps, whatever happens to it.
mod keeping;
/// Texts after their contexts, side by side.
mod likelihood;
/// Sizes, budgets, rounds and what a plan says of itself.
mod planning;
/// For any input that a generator can think of.
mod properties;
/// What plans and views do to a model.
mod pruning;
/// What scores may and may not depend on.
mod scoring;
/// Grids, rungs, comparisons.
mod searching;
/// Where a teacher may be, and losses on states.
mod teachers;
/// The loop, the objective, resuming.
mod training;

use minitron::{config, random_weights, registry};
use minitron_core::blueprint::Blueprint;
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Transformer};
use serde_json::Value;
use tch::Tensor;

/// A model in memory.
struct Model {
    blueprint: Blueprint,
    source: MemorySource,
}

impl Model {
    fn new(value: &Value, seed: u64) -> Result<Self> {
        let blueprint = Blueprint::from_config(&config(value)?, &registry())?;
        let source = random_weights(&blueprint, seed)?;
        Ok(Model { blueprint, source })
    }

    fn family(&self) -> &str {
        &self.blueprint.architecture
    }

    fn load(&self) -> Result<Transformer> {
        load(&self.source, &self.blueprint)
    }

    fn trainable(&self) -> Result<Transformer> {
        let options = LoadOptions { trainable: true, ..LoadOptions::default() };
        Transformer::load(&self.source, &self.blueprint, options)
    }
}

fn load(source: &dyn TensorSource, blueprint: &Blueprint) -> Result<Transformer> {
    Transformer::load(source, blueprint, LoadOptions::default())
}

/// Largest difference, relative to the largest of `b`.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[]) / b.abs().max().double_value(&[])
}

/// The same for scores.
fn relative_scores(a: &[f32], b: &[f32]) -> f64 {
    relative(&Tensor::from_slice(a), &Tensor::from_slice(b))
}

/// f32 sums taken in another order, relative to the largest value.
const REORDERED: f64 = 1e-5;
