//! Weights of a model that has not been trained: norms at identity, biases zero, the rest normal.

use std::f64::consts::TAU;

use tch::{Device, Kind, Tensor};

use crate::checkpoint::MemorySource;
use crate::error::Result;
use crate::random::SplitMix;
use crate::spec::{ModelSpec, Norm, Param, ParamKind, Role};

/// 400 GB of f32; a config that says more would only make us allocate.
const MAX_PARAMS: u64 = 100_000_000_000;

/// N(0, `initializer_range`²) for matrices and tables, as `transformers` initialises these
/// families; the same for the same seed. f32.
///
/// # Errors
/// `Checkpoint` when the config describes more than any memory holds.
pub fn fresh_weights(spec: &ModelSpec, seed: u64) -> Result<MemorySource> {
    let mut n_params = 0u64;
    for param in &spec.params {
        let sides = shape_of(param, spec).into_iter().map(i64::unsigned_abs);
        n_params = n_params.saturating_add(sides.fold(1, u64::saturating_mul));
    }
    if n_params > MAX_PARAMS {
        let message = format!(
            "describes {n_params} parameters, more than can be made in memory; correct its sizes"
        );
        return Err(spec.config.error(message));
    }
    let mut random = SplitMix::new(seed);
    let mut source = MemorySource::default();
    for param in &spec.params {
        let shape = shape_of(param, spec);
        let options = (Kind::Float, Device::Cpu);
        let tensor = match (param.kind, spec.norm_of(param)) {
            (ParamKind::Bias, _) => Tensor::f_zeros(&shape, options)?,
            (ParamKind::Weight, Some(norm)) if norm.kind.stores_gain_less_one() => {
                Tensor::f_zeros(&shape, options)?
            }
            (ParamKind::Weight, Some(_)) => Tensor::f_ones(&shape, options)?,
            (ParamKind::Weight, None) => {
                let std = spec.options.initializer_range;
                match of_mixer(param, spec, &mut random, &shape)? {
                    Some(tensor) => tensor,
                    None => normal(&mut random, &shape, std)?,
                }
            }
        };
        source.insert(param.name(), &tensor)?;
    }
    Ok(source)
}

impl ModelSpec {
    /// The norm that a tensor belongs to, where it belongs to one.
    pub fn norm_of(&self, param: &Param) -> Option<Norm> {
        let options = &self.options;
        let Some((layer, sublayer)) = param.at.place() else {
            let head_norm = options
                .head
                .as_ref()
                .and_then(|head| head.transform)
                .map(|(_, norm)| norm);
            let norms = [
                (Role::EMBEDDING_NORM, options.embedding.norm),
                (Role::FINAL_NORM, options.final_norm),
                (Role::HEAD_NORM, head_norm),
            ];
            return norms
                .into_iter()
                .find(|(role, _)| *role == param.role)
                .and_then(|(_, norm)| norm);
        };
        let part = self.layers.get(layer)?.0.get(sublayer)?;
        let around = [
            (Role::INPUT_NORM, part.pre),
            (Role::OUTPUT_NORM, part.post),
            (Role::SUM_NORM, part.after_sum),
        ];
        let around = around
            .into_iter()
            .filter_map(|(role, norm)| Some((role, norm?)));
        around
            .chain(part.mixer.norms())
            .find(|(role, _)| *role == param.role)
            .map(|(_, norm)| norm)
    }
}

fn shape_of(param: &Param, spec: &ModelSpec) -> Vec<i64> {
    let sides = param.sides.iter();
    sides.map(|side| spec.len(side) as i64).collect()
}

/// What its mixer says of a fresh weight, where it says anything; then it draws for each number.
fn of_mixer(
    param: &Param,
    spec: &ModelSpec,
    random: &mut SplitMix,
    shape: &[i64],
) -> Result<Option<Tensor>> {
    let Some((layer, sublayer)) = param.at.place() else {
        return Ok(None);
    };
    let part = spec.layers.get(layer).and_then(|of| of.0.get(sublayer));
    let Some(part) = part.filter(|part| part.mixer.fresh(param.role, 0.0).is_some()) else {
        return Ok(None);
    };
    let n = shape.iter().product::<i64>().max(0) as usize;
    let mut values = Vec::with_capacity(n);
    while values.len() < n {
        let value = part.mixer.fresh(param.role, random.unit());
        values.push(value.unwrap_or(0.0) as f32);
    }
    Ok(Some(Tensor::f_from_slice(&values)?.f_view(shape)?))
}

/// N(0, std²) by Box and Muller's transform; our own draws, since libtorch's generator is one for
/// the whole process.
fn normal(random: &mut SplitMix, shape: &[i64], std: f64) -> Result<Tensor> {
    let n = shape.iter().product::<i64>().max(0) as usize;
    let mut values = Vec::with_capacity(n.next_multiple_of(2));
    while values.len() < n {
        let radius = std * (-2.0 * (1.0 - random.unit()).ln()).sqrt();
        let angle = TAU * random.unit();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(n);
    Ok(Tensor::f_from_slice(&values)?.f_view(shape)?)
}
