//! Which strategies are taken where nobody names one: the papers' best practice.

use std::path::Path;

use minitron_core::error::Result;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelSpec;
use minitron_engine::jobs::{Defaults, SizeRequest};

use crate::evaluators::tag_of_task;

/// The built-in choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Defaults for BuiltIn {
    fn metrics(&self) -> Vec<PluginSpec> {
        vec![
            PluginSpec::bare("activation"),
            PluginSpec::bare("block_influence"),
        ]
    }

    fn reconstructions(&self) -> Vec<PluginSpec> {
        vec![PluginSpec::bare("auto")]
    }

    fn distillation_losses(&self) -> Vec<PluginSpec> {
        vec![PluginSpec::bare("forward_kl")]
    }

    fn training_losses(&self) -> Vec<PluginSpec> {
        vec![PluginSpec::bare("cross_entropy")]
    }

    fn allocator(&self, wanted: &SizeRequest) -> PluginSpec {
        let sizes = serde_json::to_value(&wanted.sizes).unwrap_or_default();
        if wanted.by_blocks {
            return by_blocks(wanted).with("hold", sizes);
        }
        if let Some(params) = &wanted.active_params {
            return PluginSpec::bare("budget")
                .with("params", params.as_str())
                .with("active", true)
                .with("hold", sizes);
        }
        match (&wanted.params, wanted.ratio, &wanted.memory) {
            (Some(params), ..) => PluginSpec::bare("budget")
                .with("params", params.as_str())
                .with("hold", sizes),
            (None, None, Some(memory)) => PluginSpec::bare("memory")
                .with("memory", memory.as_str())
                .with("seq_len", wanted.seq_len)
                .with("batch_size", wanted.batch_size.unwrap_or(1))
                .with("bytes_per_param", wanted.bytes_per_param)
                .with("hold", sizes),
            (None, Some(ratio), _) => PluginSpec::bare("ratio")
                .with("ratio", ratio)
                .with("non_embedding", wanted.non_embedding)
                .with("hold", sizes),
            (None, None, None) => PluginSpec::bare("fixed").with("sizes", sizes),
        }
    }

    fn evaluators(&self, spec: &ModelSpec, has_teacher: bool) -> Vec<PluginSpec> {
        let mut specs = Vec::new();
        if spec.options.head.is_some() {
            specs.push(PluginSpec::bare("perplexity"));
        }
        if !spec.options.causal && has_teacher {
            specs.push(PluginSpec::bare("hidden_cosine"));
        }
        specs
    }

    fn task(&self, path: &Path) -> Result<PluginSpec> {
        Ok(PluginSpec::bare(tag_of_task(path)?).with("path", path.to_string_lossy().as_ref()))
    }
}

/// Which layer gets what, by what its parts were measured to cost.
fn by_blocks(wanted: &SizeRequest) -> PluginSpec {
    let mut knapsack = PluginSpec::bare("knapsack")
        .with("params", wanted.params.clone())
        .with("active_params", wanted.active_params.clone())
        .with("ratio", wanted.ratio)
        .with("non_embedding", wanted.non_embedding)
        .with("latency_ms", wanted.latency_ms);
    if let Some(memory) = &wanted.memory {
        knapsack = knapsack
            .with("memory", memory.as_str())
            .with("seq_len", wanted.seq_len)
            .with("batch_size", wanted.batch_size.unwrap_or(1))
            .with("bytes_per_param", wanted.bytes_per_param);
    }
    knapsack
}
