//! What a plan may cost, and in what.

use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockChoice, BlockChoices, BlockScores};
use minitron_core::spec::{ModelSpec, SizeMap, Sizes};

/// A part of a layer at one of its smaller sizes.
pub(super) type Picked<'a> = (&'a BlockChoices, &'a BlockChoice);

/// A ceiling.
pub(super) struct Budget<'a> {
    pub measure: Measure<'a>,
    pub most: f64,
}

impl Budget<'_> {
    /// Whether a model keeps it, but for rounding.
    pub fn holds(&self, sizes: &SizeMap, picked: &[Picked]) -> bool {
        self.measure.of(sizes, picked) <= self.most * (1.0 + 1e-9) + 1e-9
    }
}

/// What is counted of a model.
pub(super) enum Measure<'a> {
    Params(&'a ModelSpec),
    NonEmbedding(&'a ModelSpec),
    Active(&'a ModelSpec),
    Bytes {
        spec: &'a ModelSpec,
        seq_len: usize,
        batch_size: usize,
        bytes_per_param: f64,
    },
    /// Milliseconds: of the whole forward pass, and what each smaller part saves.
    Latency {
        whole: f64,
        full: BTreeMap<(usize, &'a str), f64>,
    },
}

impl Measure<'_> {
    /// Of a model at some sizes, which some blocks lead to.
    pub fn of(&self, sizes: &SizeMap, picked: &[Picked]) -> f64 {
        match self {
            Measure::Params(spec) => spec.n_params_of(sizes) as f64,
            Measure::NonEmbedding(spec) => spec.n_non_embedding_of(sizes) as f64,
            Measure::Active(spec) => spec.n_active_of(sizes) as f64,
            Measure::Bytes {
                spec,
                seq_len,
                batch_size,
                bytes_per_param,
            } => {
                let weights = spec.n_params_of(sizes) as f64 * bytes_per_param;
                weights.ceil() + spec.kv_cache_bytes_of(sizes, *seq_len, *batch_size) as f64
            }
            Measure::Latency { whole, full } => {
                let mut ms = *whole;
                for (block, choice) in picked {
                    let before = full.get(&(block.layer, block.part.as_str()));
                    let after = if choice.is_dropped() {
                        Some(0.0)
                    } else {
                        choice.ms
                    };
                    if let (Some(before), Some(after)) = (before, after) {
                        ms -= before - after;
                    }
                }
                ms
            }
        }
    }

    pub fn unit(&self) -> &'static str {
        match self {
            Measure::Params(_) => "parameters",
            Measure::NonEmbedding(_) => "parameters beside embeddings",
            Measure::Active(_) => "parameters of one token",
            Measure::Bytes { .. } => "bytes",
            Measure::Latency { .. } => "ms",
        }
    }
}

impl<'a> Measure<'a> {
    /// The times of a table in which every part has one.
    pub fn latency(scores: &'a BlockScores, hold: &Sizes) -> Result<Self> {
        let Some(timed) = &scores.timed else {
            return Err(Error::Recipe(
                "knapsack: latency_ms needs times: give --times, or block scores of `minitron \
                 blocks --time`"
                    .into(),
            ));
        };
        if let Some(kind) = hold.keys().next() {
            return Err(Error::Recipe(format!(
                "knapsack: hold: `{kind}` changes all times, which were measured without it; \
                 prune it first, then measure that model"
            )));
        }
        let mut full = BTreeMap::new();
        for block in &scores.blocks {
            let has_times = block
                .choices
                .iter()
                .all(|choice| choice.ms.is_some() || choice.is_dropped());
            let Some(ms) = block.ms.filter(|_| has_times) else {
                let (layer, part) = (block.layer, &block.part);
                return Err(Error::Recipe(format!(
                    "knapsack: layer {layer}, {part} has no times; measure all sizes with \
                     `minitron blocks --time`"
                )));
            };
            full.insert((block.layer, block.part.as_str()), ms);
        }
        let whole = timed.rest_ms + full.values().sum::<f64>();
        Ok(Measure::Latency { whole, full })
    }
}
