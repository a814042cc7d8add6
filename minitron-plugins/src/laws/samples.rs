//! What plugins are tried on: tiny models, their rankings and plans, made-up tokens and text.

use std::collections::BTreeMap;
use std::path::Path;

use std::sync::Arc;

use minitron_core::calibrate::{Alone, Calibration, Scores};
use minitron_core::checkpoint::{Config, MemorySource, TensorSource};
use minitron_core::contract::{Architecture, Axis};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, NoTap, Transformer};
use minitron_core::plan::{AxisSizes, Rankings, Space};
use minitron_core::progress::Silent;
use minitron_core::random::SplitMix;
use minitron_core::registry::{Kind, PluginSpec, Registry};
use minitron_core::spec::{CheckpointInfo, ModelSpec, ParamKind, PruneGroup, Role, Sizes};
use minitron_core::windows::{Task, Windows};
use serde_json::{Value, json};
use tch::Tensor;

/// Vocabulary of the sample models.
pub(super) const VOCAB: usize = 61;

/// A tiny model with random weights.
#[derive(Debug)]
pub struct SampleModel {
    /// Its description.
    pub spec: ModelSpec,
    /// Its weights.
    pub source: MemorySource,
}

impl SampleModel {
    /// A model of a config.
    ///
    /// # Errors
    /// `Checkpoint` where no family recognises the config.
    pub fn new(registry: &Registry, config: &Value, seed: u64) -> Result<Self> {
        let spec = ModelSpec::from_config(&config_of(config)?, registry)?;
        let source = random_weights(&spec, seed)?;
        Ok(SampleModel { spec, source })
    }

    pub(super) fn load(&self) -> Result<Transformer> {
        Transformer::load(&self.source, &self.spec, LoadOptions::default())
    }

    /// The groups of all linked axes. Opened ones may cut the same dims.
    pub(super) fn groups(&self, registry: &Registry) -> Result<Vec<PruneGroup>> {
        let groups = linked_axes(registry)?
            .iter()
            .map(|axis| axis.groups(&self.spec))
            .collect::<Result<Vec<_>>>();
        Ok(groups?.concat())
    }

    pub(super) fn space(&self, registry: &Registry) -> Result<Space> {
        Space::new(&self.spec, &linked_axes(registry)?)
    }

    /// What a pass over windows takes; an encoder's mask is its last token but one.
    pub(super) fn calibration<'a>(
        &self,
        windows: &'a Windows,
        batch_size: usize,
    ) -> Result<Calibration<'a>> {
        let mask = self.spec.options.vocab.checked_sub(2).map(|id| id as u32);
        let task = Some(Task::of(self.spec.options.causal, mask, 0)?);
        Ok(Calibration {
            windows,
            task,
            batch_size,
            world: &Alone,
            progress: &Silent,
        })
    }
}

/// A model of every linked family.
///
/// # Errors
/// What a family says of the config.
pub fn samples(registry: &Registry) -> Result<Vec<SampleModel>> {
    let families = registry
        .of_kind(Kind::Architecture)
        .filter(|family| !registry.is_opened(family));
    families
        .map(|family| SampleModel::new(registry, &sample_config(family.tag), 1))
        .collect()
}

/// A config of three layers, four heads in two groups and a residual stream of 32 channels, in the
/// words of Llama and of GPT-2, which most families took over, and in those of hybrids.
pub fn sample_config(model_type: &str) -> Value {
    let mut config = plain_config(model_type);
    // The language model inside a wrapper.
    let inner = match model_type {
        "gemma3" => "gemma3_text",
        _ => "mistral",
    };
    config["text_config"] = plain_config(inner);
    // Of DeciLM: one layer has no attention, one no MLP.
    config["block_configs"] = json!([
        { "attention": { "n_heads_in_group": 2 }, "ffn": { "intermediate_size": 48 } },
        { "attention": { "no_op": true }, "ffn": { "intermediate_size": 48 } },
        { "attention": { "n_heads_in_group": 2 }, "ffn": { "no_op": true } },
    ]);
    config
}

fn plain_config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": VOCAB,
        "tie_word_embeddings": false, "initializer_range": 0.3,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64,
        "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4,
        "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
        "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 64,
        "hybrid_override_pattern": "M-*M", "mamba_num_heads": 8, "mamba_head_dim": 8,
        "n_groups": 2, "ssm_state_size": 8, "chunk_size": 4,
        "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 4,
    })
}

pub(super) fn config_of(value: &Value) -> Result<Config> {
    Config::from_value(Path::new("config.json"), value.clone())
}

/// The description that one plugin gives of a config.
pub(super) fn described(family: &Arc<dyn Architecture>, config: &Config) -> Result<ModelSpec> {
    ModelSpec::of(family, &CheckpointInfo::config_alone(config))
}

/// Weights that show in the output one and all: no zero biases, no unit gains. From our own
/// generator, since libtorch's is shared by all threads.
///
/// # Errors
/// `Torch` for sides that no tensor has.
pub fn random_weights(spec: &ModelSpec, seed: u64) -> Result<MemorySource> {
    let mut random = SplitMix::new(seed);
    let mut source = MemorySource::default();
    for param in &spec.params {
        let mut shape: Vec<i64> = Vec::new();
        for side in &param.sides {
            let len = side.len(|dim| spec.dims.get(dim).map(|dim| dim.size));
            shape.push(len as i64);
        }
        let is_gain = param.sides.len() == 1 && param.kind == ParamKind::Weight;
        let spread = if param.role == Role::TOKEN_EMBEDDING {
            1.0
        } else {
            0.4
        };
        let centre = f64::from(u8::from(is_gain));
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| (centre + spread * (2.0 * random.unit() - 1.0)) as f32)
            .collect();
        source.insert(
            param.name(),
            &Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?,
        )?;
    }
    Ok(source)
}

pub(super) fn linked_axes(registry: &Registry) -> Result<Vec<Box<dyn Axis>>> {
    let linked = registry
        .of_kind(Kind::Axis)
        .filter(|axis| !registry.is_opened(axis));
    linked
        .map(|axis| registry.build(&PluginSpec::bare(axis.tag)))
        .collect()
}

/// Every unit with a random score.
///
/// # Errors
/// As [`Rankings::new`].
pub fn random_rankings(groups: &[PruneGroup], seed: u64) -> Result<Rankings> {
    let mut random = SplitMix::new(seed);
    let mut scores = Scores::default();
    for group in groups {
        let values = (0..group.n_units).map(|_| random.unit() as f32).collect();
        scores
            .by_name
            .insert(format!("random/{}", group.dim), values);
    }
    Rankings::new(&scores, groups, &BTreeMap::new())
}

/// About half of each axis alone, where the family has such a student.
pub(super) fn halves(space: &Space) -> Vec<Sizes> {
    let axes = space.axes.iter();
    axes.filter_map(|axis| half_of(axis, space)).collect()
}

fn half_of(axis: &AxisSizes, space: &Space) -> Option<Sizes> {
    let mut sizes = axis.legal();
    sizes.retain(|&size| size < axis.full);
    sizes.sort_by_key(|size| size.abs_diff(axis.full / 2));
    sizes
        .into_iter()
        .map(|size| Sizes::from([(axis.kind.clone(), size)]))
        .find(|one| space.complete(one).is_ok())
}

/// About half of as many axes at once as go together.
pub(super) fn half_of_all(space: &Space) -> Sizes {
    halves(space).into_iter().fold(Sizes::new(), |sizes, one| {
        let mut both = sizes.clone();
        both.extend(one);
        if space.complete(&both).is_ok() {
            both
        } else {
            sizes
        }
    })
}

pub(super) fn some_windows(n_windows: usize, width: usize, seed: u64) -> Result<Windows> {
    let mut random = SplitMix::new(seed);
    let tokens = (0..n_windows * width)
        .map(|_| random.below(VOCAB) as u32)
        .collect();
    Windows::cut(tokens, width, None, None, "made-up tokens")
}

/// Logits, or the last hidden states of a model without a head, of two sequences.
pub(super) fn outputs(source: &dyn TensorSource, spec: &ModelSpec) -> Result<Tensor> {
    let width = spec.options.max_positions.clamp(1, 12);
    let vocab = spec.options.vocab.max(1);
    let ids: Vec<i64> = (0..2 * width)
        .map(|idx| ((7 * idx + 3) % vocab) as i64)
        .collect();
    let ids_bt = Tensor::f_from_slice(&ids)?.f_view([2, -1])?;
    let model = Transformer::load(source, spec, LoadOptions::default())?;
    let _no_grad = tch::no_grad_guard();
    let hidden = model.hidden(&ids_bt, &mut NoTap, None)?;
    if model.has_head() {
        model.logits(&hidden)
    } else {
        Ok(hidden)
    }
}
