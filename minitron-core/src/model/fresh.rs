//! Weights of a model that has not been trained: norms at identity, biases zero, the rest normal.

use tch::{Device, Kind, Tensor};

use crate::blueprint::{Blueprint, NormKind, Role, Slot};
use crate::checkpoint::MemorySource;
use crate::error::Result;

/// N(0, `initializer_range`²) for matrices and tables, as `transformers` initialises these families; the same for the same
/// seed. f32.
pub fn fresh_weights(blueprint: &Blueprint, seed: u64) -> Result<MemorySource> {
    tch::manual_seed(seed as i64);
    let mut source = MemorySource::default();
    for spec in &blueprint.tensors {
        let shape: Vec<i64> = spec
            .sides
            .iter()
            .map(|side| side.len(|dim| blueprint.dims.get(dim).map(|d| d.size)) as i64)
            .collect();
        let options = (Kind::Float, Device::Cpu);
        let is_norm = matches!(
            spec.role,
            Role::EmbeddingNorm | Role::AttentionNorm | Role::MlpNorm | Role::FinalNorm | Role::HeadNorm
        );
        let tensor = match spec.slot {
            Slot::Bias => Tensor::f_zeros(&shape, options)?,
            Slot::Weight if is_norm && blueprint.options.norm == NormKind::Layer1p => Tensor::f_zeros(&shape, options)?,
            Slot::Weight if is_norm => Tensor::f_ones(&shape, options)?,
            Slot::Weight => Tensor::f_randn(&shape, options)?.f_mul_scalar(blueprint.options.initializer_range)?,
        };
        source.insert(spec.name(), &tensor)?;
    }
    Ok(source)
}
