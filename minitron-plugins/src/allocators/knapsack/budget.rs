//! What a plan may cost, and in what.

use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockScores, parse_budget, parse_bytes};
use minitron_core::spec::{ModelSpec, SizeMap};

use super::Knapsack;
use super::table::Picked;

/// A ceiling.
pub(super) struct Budget<'a> {
    pub measure: Measure<'a>,
    pub most: f64,
}

/// What is counted of a model.
pub(super) enum Measure<'a> {
    Params(&'a ModelSpec),
    NonEmbedding(&'a ModelSpec),
    Active(&'a ModelSpec),
    Bytes {
        spec: &'a ModelSpec,
        options: &'a Knapsack,
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
            Measure::Bytes { spec, options } => {
                let seq_len = options.seq_len.unwrap_or(spec.options.max_positions);
                let weights = spec.n_params_of(sizes) as f64 * options.bytes_per_param;
                let cache = spec.kv_cache_bytes_of(sizes, seq_len, options.batch_size);
                weights.ceil() + cache as f64
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

impl<'a> Budget<'a> {
    /// Those that are given: one or two.
    pub fn all(
        options: &'a Knapsack,
        spec: &'a ModelSpec,
        scores: &'a BlockScores,
    ) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        if let Some(params) = &options.params {
            let most = parse_budget(params)?.n_params as f64;
            let measure = Measure::Params(spec);
            all.push(Budget { measure, most });
        }
        if let Some(params) = &options.active_params {
            let most = parse_budget(params)?.n_params as f64;
            let measure = Measure::Active(spec);
            all.push(Budget { measure, most });
        }
        if let Some(ratio) = options.ratio {
            if !(ratio > 0.0 && ratio <= 1.0) {
                return Err(Error::Recipe(format!(
                    "ratio: expected a share above 0, at most 1, got {ratio}"
                )));
            }
            let measure = match options.non_embedding {
                true => Measure::NonEmbedding(spec),
                false => Measure::Params(spec),
            };
            let most = measure.of(&SizeMap::default(), &[]) * ratio;
            all.push(Budget { measure, most });
        }
        if let Some(memory) = &options.memory {
            let given = options.bytes_per_param;
            if !(given > 0.0 && given <= 16.0) {
                return Err(Error::Recipe(format!(
                    "bytes_per_param: expected above 0, at most 16, got {given}"
                )));
            }
            let most = parse_bytes(memory)? as f64;
            let measure = Measure::Bytes { spec, options };
            all.push(Budget { measure, most });
        }
        if let Some(most) = options.latency_ms {
            let measure = latency(scores, options)?;
            all.push(Budget { measure, most });
        }
        match all.len() {
            1 | 2 => Ok(all),
            n => Err(Error::Recipe(format!(
                "knapsack: expected one budget, or two (params, active_params, ratio, memory, \
                 latency_ms), got {n}"
            ))),
        }
    }
}

/// The times of a table in which every part has one.
fn latency<'a>(scores: &'a BlockScores, options: &Knapsack) -> Result<Measure<'a>> {
    let Some(timed) = &scores.timed else {
        return Err(Error::Recipe(
            "knapsack: latency_ms needs times: give --times, or blocks that `minitron blocks \
             --time` measured"
                .into(),
        ));
    };
    if let Some(kind) = options.hold.keys().next() {
        return Err(Error::Recipe(format!(
            "knapsack: hold: `{kind}` changes all times, which were measured without it; prune it \
             first, then measure that model"
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
                "knapsack: layer {layer}, {part} has no times; measure all sizes with `minitron \
                 blocks --time`"
            )));
        };
        full.insert((block.layer, block.part.as_str()), ms);
    }
    let whole = timed.rest_ms + full.values().sum::<f64>();
    Ok(Measure::Latency { whole, full })
}
