use minitron_core::contract::Allocator;
use minitron_core::error::{Error, Result};
use minitron_core::plan::{Plan, Rankings, Space, parse_bytes};
use minitron_core::spec::{ModelSpec, SizeMap, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layers::LayersByDepth;
use super::shapes::{Goal, plans};

/// A ceiling on memory: parameters x `bytes_per_param` + the key/value cache of `batch_size`
/// sequences of `seq_len` tokens, in two bytes per element, is at most `memory`. Of the legal
/// shapes within the tolerance below it, the one whose axes shrink most evenly; where there is
/// none, the largest below it.
///
/// Depth and key/value heads stay unless they are held at another size or named in `free`; nothing
/// else makes the cache of grouped queries smaller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// For example `8GiB`.
    pub memory: String,
    /// Tokens per sequence of the key/value cache; the model's positions where not given.
    pub seq_len: Option<usize>,
    /// Sequences of the key/value cache.
    pub batch_size: usize,
    /// Stored bytes of a parameter: 2 for f16 and bf16, 4 for f32.
    pub bytes_per_param: f64,
    /// Share of the ceiling that may be left unused for the sake of balance.
    pub tolerance: f64,
    /// Sizes held, by kind.
    pub hold: Sizes,
    /// Axes that may shrink; all that were scored but depth, kv_heads, rope_pairs and
    /// mamba_head_dim where empty.
    pub free: Vec<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            memory: "8GiB".into(),
            seq_len: None,
            batch_size: 1,
            bytes_per_param: 2.0,
            tolerance: 0.05,
            hold: Sizes::new(),
            free: Vec::new(),
        }
    }
}

minitron_core::plugin! {
    Allocator for Memory {
        tag: "memory",
        summary: "the most balanced shape whose weights and key/value cache fit",
        source: "arXiv 2407.14679, section 4, with bytes in place of parameters",
    }
}

#[typetag::serde(name = "memory")]
impl Allocator for Memory {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        if !(self.bytes_per_param > 0.0 && self.bytes_per_param <= 16.0) {
            let message = format!(
                "bytes_per_param: expected above 0, at most 16, got {}",
                self.bytes_per_param
            );
            return Err(Error::Recipe(message));
        }
        let seq_len = self.seq_len.unwrap_or(spec.options.max_positions);
        let layers = LayersByDepth::new(space, rankings, spec);
        let goal = Goal {
            cost: &|sizes| self.n_bytes(spec, &layers.with(sizes), seq_len),
            unit: "bytes",
            target: parse_bytes(&self.memory)?,
            tolerance: self.tolerance,
            is_ceiling: true,
            hold: &self.hold,
            free: &self.free,
        };
        plans(&goal, space, rankings, spec, 1)
    }
}

impl Memory {
    /// Of weights and key/value cache.
    fn n_bytes(&self, spec: &ModelSpec, sizes: &SizeMap, seq_len: usize) -> u64 {
        let weights = (spec.n_params_of(sizes) as f64 * self.bytes_per_param).ceil() as u64;
        weights.saturating_add(spec.kv_cache_bytes_of(sizes, seq_len, self.batch_size))
    }
}
