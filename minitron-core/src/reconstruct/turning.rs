//! Which models' residual streams can be turned, and how a turned model is described.

use tch::{Device, Kind, Tensor};

use super::projections::exact;
use super::rotated::has_layer_norms;
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};
use crate::parts::{Norm, NormKind};
use crate::spec::{CheckpointInfo, HIDDEN, ModelSpec};

/// Refuses families whose norms do not turn with the stream.
pub(super) fn check_turns(spec: &ModelSpec) -> Result<()> {
    let Some(found) = fixed_norm(spec) else {
        return Ok(());
    };
    Err(Error::Recipe(format!(
        "the residual stream can be turned where one kind of norm stands before each part and \
         after the last, as in Llama or GPT-2; `{}` has {found}: leave the rotation out",
        spec.architecture
    )))
}

/// What holds the stream's channels in their place, where something does.
fn fixed_norm(spec: &ModelSpec) -> Option<&'static str> {
    let options = &spec.options;
    let is_layer = has_layer_norms(spec);
    let parts = (0..spec.layers.len()).flat_map(|layer| spec.sublayers(layer));
    for (_, part) in parts {
        match (part.pre, part.post, part.after_sum) {
            (_, _, Some(norm)) if norm.kind.is_rms() => return Some("RMS norms after its sums"),
            (_, _, Some(_)) => return Some("layer norms after its sums"),
            (_, Some(_), _) => return Some("norms on what each part adds"),
            (None, ..) => return Some("parts without a norm before them"),
            (Some(pre), ..) if pre.kind.is_rms() == is_layer => return Some("norms of two kinds"),
            _ => {}
        }
    }
    match (options.embedding.norm, options.final_norm) {
        (Some(_), _) => Some("a norm on its embeddings"),
        (None, None) => Some("no norm after its last layer"),
        (None, Some(norm)) if norm.kind.is_rms() == is_layer => Some("norms of two kinds"),
        _ => None,
    }
}

/// The model as it runs once it is turned: embeddings untied, and layer norms, whose mean is gone,
/// as RMS norms.
pub(super) fn running(source: &dyn TensorSource, spec: &ModelSpec) -> Result<ModelSpec> {
    let mut running = untied(source, spec)?;
    let parts = running.layers.iter_mut().flat_map(|layer| &mut layer.0);
    let norms = parts.filter_map(|part| part.pre.as_mut());
    let last = running.options.final_norm.as_mut();
    norms.chain(last).for_each(without_mean);
    Ok(running)
}

fn without_mean(norm: &mut Norm) {
    norm.kind = match norm.kind {
        NormKind::Layer => NormKind::Rms,
        NormKind::Layer1p => NormKind::Rms1p,
        other => other,
    };
}

/// The model's description with embeddings untied.
pub(super) fn untied(source: &dyn TensorSource, spec: &ModelSpec) -> Result<ModelSpec> {
    if !spec.options.tied {
        return Ok(spec.clone());
    }
    let mut config = spec.config.clone();
    config.set("tie_word_embeddings", false);
    let described = spec.redescribed(&CheckpointInfo::of(&config, source))?;
    if described.options.tied {
        let message = format!(
            "`{}` has no config with untied embeddings, which a rotation needs",
            spec.architecture
        );
        return Err(Error::Recipe(message));
    }
    Ok(described)
}

/// QᵀQ = 1, within what f64 sums give; where the student has layer norms, the mean over its kept
/// channels is that over the teacher's.
pub(super) fn check_basis(basis_ee: &Tensor, spec: &ModelSpec, n_kept: usize) -> Result<()> {
    let n_hidden = spec.size(HIDDEN);
    let options = (Kind::Double, Device::Cpu);
    let eye_ee = Tensor::f_eye(n_hidden as i64, options)?;
    if basis_ee.size() != eye_ee.size() {
        return Err(Error::Internal(format!(
            "a basis of shape {:?} for {n_hidden} channels",
            basis_ee.size()
        )));
    }
    let basis_ee = exact(basis_ee)?;
    let square_ee = basis_ee.f_transpose(0, 1)?.f_matmul(&basis_ee)?;
    let off = largest(&square_ee.f_sub(&eye_ee)?)?;
    if off >= 1e-8 {
        return Err(Error::Internal(format!(
            "a basis that is orthonormal only within {off:e}"
        )));
    }
    if !has_layer_norms(spec) {
        return Ok(());
    }
    let means_k = basis_ee
        .f_narrow(1, 0, n_kept as i64)?
        .f_sum_dim_intlist(1i64, false, Kind::Double)?
        .f_div_scalar((n_kept.max(1) as f64).sqrt())?;
    let mean = 1.0 / (n_hidden.max(1) as f64).sqrt();
    match largest(&means_k.f_sub_scalar(mean)?)? < 1e-8 {
        true => Ok(()),
        false => Err(Error::Internal(
            "a basis whose kept vectors do not add up to the mean that layer norms take out".into(),
        )),
    }
}

fn largest(x: &Tensor) -> Result<f64> {
    Ok(x.f_abs()?.f_max()?.f_double_value(&[])?)
}
