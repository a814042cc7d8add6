//! Statements that hold without PyTorch, on tiny models of every family.

/// Layers without attention or without MLP, and a Llama as a family that has such.
mod absent;
/// A step over its passes: what is averaged over what.
mod averages;
/// What smaller parts of layers cost, and plans by it.
mod blocks;
/// Neurons that stayed, beside what they were.
mod cloning;
/// Windows of conversations: what counts, what stays whole, what attention reaches.
mod conversations;
/// Operations and waits of a step, counted.
mod costs;
/// What each cut is said to cost.
mod cuts;
/// What training is fed with: order, mixtures, resuming.
mod data;
/// Models and texts at the edge of what numbers can hold.
mod degenerate;
/// A teacher of whom draws are remembered.
mod draws;
/// Dropped experts that are merged into kept ones.
mod experts;
/// Continuations with and without the key/value cache.
mod generation;
/// What pruning says of held-out text.
mod held_out;
/// What a training run keeps, whatever happens to it.
mod keeping;
/// Dropped layers merged into those before them.
mod layers;
/// Texts after their contexts, side by side.
mod likelihood;
mod merging;
/// What layers are made of, at the ends of their options.
mod mixers;
/// Sequences of different lengths side by side.
mod padding;
/// Heads that lose channels in rope pairs.
mod pairs;
/// Sizes, budgets, rounds and what a plan says of itself.
mod planning;
/// For any input that a generator can think of.
mod properties;
/// What plans and views do to a model.
mod pruning;
/// The learning rate of a distillation that is given none.
mod rates;
/// What reconstructions do to a student.
mod reconstruction;
/// Widths that rescale: embeddings and norms.
mod rescaling;
/// What scores may and may not depend on.
mod scoring;
/// Grids, rungs, comparisons.
mod searching;
/// Layers whose weights are brought when they run.
mod sharded;
/// Longer windows at the end of a training.
mod stages;
/// Where a teacher may be, and losses on states.
mod teachers;
/// One factor of all logits.
mod temperature;
/// The loop, the objective, resuming.
mod training;
/// Layers of different widths.
mod uneven;

use std::cell::RefCell;
use std::path::Path;

use minitron::{config, random_weights, registry};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::progress::{Interrupt, Silent};
use minitron_core::random::SplitMix;
use minitron_core::spec::ModelSpec;
use minitron_core::windows::{Task, Windows};
use minitron_engine::data::DataLoader;
use minitron_engine::ranks::Ranks;
use minitron_engine::train::{
    InMemoryTeacher, Learner, Objective, Saving, Sharding, TrainSettings, Trainer,
};
use serde_json::Value;
use tch::Tensor;

/// A model in memory.
struct Model {
    spec: ModelSpec,
    source: MemorySource,
}

impl Model {
    fn new(value: &Value, seed: u64) -> Result<Self> {
        let spec = ModelSpec::from_config(&config(value)?, &registry())?;
        let source = random_weights(&spec, seed)?;
        Ok(Model { spec, source })
    }

    fn family(&self) -> &str {
        &self.spec.architecture
    }

    fn load(&self) -> Result<Transformer> {
        load(&self.source, &self.spec)
    }

    fn trainable(&self) -> Result<Transformer> {
        let options = LoadOptions {
            trainable: true,
            ..LoadOptions::default()
        };
        Transformer::load(&self.source, &self.spec, options)
    }
}

fn load(source: &dyn TensorSource, spec: &ModelSpec) -> Result<Transformer> {
    Transformer::load(source, spec, LoadOptions::default())
}

/// Documents of so many random ids each, one a window, between special tokens where there are some.
fn documents(
    lengths: impl IntoIterator<Item = usize>,
    seed: u64,
    special_tokens: Option<(u32, u32)>,
) -> Windows {
    let mut random = SplitMix::new(seed);
    let document = |length| (0..length).map(|_| 5 + random.below(50) as u32).collect();
    Windows::of_documents(
        lengths.into_iter().map(document).collect(),
        64,
        None,
        special_tokens,
        "documents",
    )
    .unwrap()
}

/// One who learns, with nothing special about it.
fn learner<'a>(
    student: &'a Transformer,
    objective: &'a Objective,
    out_dir: &'a Path,
) -> Learner<'a> {
    Learner {
        student,
        layers: None,
        objective,
        identity: Value::Null,
        kl_at_start: None,
        out_dir,
        write_best: None,
    }
}

/// A distillation of next tokens with nothing special about it.
fn trainer<'a>(
    learners: &'a [Learner<'a>],
    teacher: &'a Transformer,
    loader: &'a RefCell<DataLoader>,
    settings: &'a TrainSettings,
    interrupt: &'a Interrupt,
) -> Trainer<'a> {
    Trainer {
        ranks: Ranks::alone(),
        sharding: Sharding::None,
        learners,
        teacher: Some(RefCell::new(Box::new(InMemoryTeacher(teacher)))),
        correction: None,
        loader,
        long: None,
        task: Task::NextToken,
        settings,
        saving: Saving::default(),
        held_out: None,
        max_skipped: 3,
        stop_after: None,
        progress: &Silent,
        interrupt,
    }
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
