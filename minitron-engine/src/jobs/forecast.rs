//! What a distillation takes in memory, before there is one: from configs alone.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Device;

use super::compute_type::ComputeType;
use super::context::Context;
use super::train::losses::objective;
use crate::train::{BatchShape, Objective, Sharding, StepMemory};
use minitron_core::error::{Error, Result};
use minitron_core::spec::ModelSpec;

/// A distillation to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Args)]
#[serde(default)]
pub struct ForecastOptions {
    /// Say what a training step takes of each of so many processes; --batch-size counts the windows
    /// of all.
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// Its teacher, as the model: weights need not be there.
    #[arg(long, requires = "ranks")]
    pub teacher: Option<String>,
    /// What each process keeps a part of: none, optimizer or layers.
    #[arg(long, value_enum, default_value = "none", requires = "ranks")]
    pub shard: Sharding,
    /// With layers run a second time in the backward pass.
    #[arg(long, requires = "ranks")]
    pub recompute: bool,
    /// Each process on a GPU of its own, in bf16, or in the type that is given: --gpu=f32.
    #[arg(long, requires = "ranks", value_name = "TYPE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "bf16")]
    pub gpu: Option<ComputeType>,
}

/// What the program takes beside models and batches: libtorch, on a GPU its context and workspaces.
const BASE_BYTES: (u64, u64) = (300 << 20, 1 << 30);

/// The bytes of a step on each of `n_ranks`, by what takes them.
pub(super) fn forecast(
    context: &Context,
    options: &ForecastOptions,
    (student, teacher): (&ModelSpec, Option<&ModelSpec>),
    (batch_size, seq_len): (usize, usize),
    n_ranks: usize,
) -> Result<Value> {
    if n_ranks == 0 {
        return Err(Error::Recipe("--ranks: expected at least 1".into()));
    }
    let kind = options.gpu.map_or(context.kind, ComputeType::kind);
    let n_bytes = kind.elt_size_in_bytes();
    let (device, base) = match options.gpu {
        Some(_) => (Device::Cuda(0), BASE_BYTES.1),
        None => (Device::Cpu, BASE_BYTES.0),
    };
    let batch = BatchShape {
        n_windows: batch_size.div_ceil(n_ranks).max(1),
        width: seq_len,
        n_bytes,
        device,
    };
    let losses = match teacher {
        Some(_) => context.defaults.distillation_losses(),
        None => context.defaults.training_losses(),
    };
    let is_sharded = options.shard == Sharding::Layers && n_ranks > 1;
    let objective = Objective {
        recompute: options.recompute,
        ..objective(context, &losses, student, teacher, None)?
    };
    let n_parts = if is_sharded { n_ranks } else { 1 };
    let kept = teacher.map(|spec| (spec, StepMemory::held_model(spec, n_bytes, n_parts)));
    let memory = StepMemory::of(&objective, student, kept, batch, base);
    let memory = memory.divided(options.shard, student, batch, (n_ranks, false));
    Ok(json!({
        "ranks": n_ranks,
        "shard": options.shard,
        "recompute": objective.recompute,
        "windows_per_rank": batch.n_windows,
        "seq_len": seq_len,
        "bytes_per_number": n_bytes,
        "bytes": memory,
        "total_bytes": memory.total(),
    }))
}
