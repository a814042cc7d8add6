//! Numbers to try losses on, and what their gradients are compared with.

use minitron_core::error::Result;
use minitron_core::random::SplitMix;
use tch::{Kind, Tensor};

/// Numbers from −size to size in f64.
pub(crate) fn uniform(shape: &[i64], size: f64, seed: u64) -> Result<Tensor> {
    let mut random = SplitMix::new(seed);
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_: i64| size * (2.0 * random.unit() - 1.0))
        .collect();
    Ok(Tensor::f_from_slice(&values)?.f_view(shape)?)
}

/// A copy that gradients reach.
pub(crate) fn leaf(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_mul_scalar(1.0)?.f_set_requires_grad(true)?)
}

pub(super) fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.numel() == 0 || x.f_isfinite()?.f_min()?.f_double_value(&[])? > 0.0)
}

/// Largest difference, relative to the largest of `b`.
pub(crate) fn relative(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(largest(&a.f_sub(b)?)? / largest(b)?.max(f64::MIN_POSITIVE))
}

fn largest(x: &Tensor) -> Result<f64> {
    let largest = x.f_abs()?.f_max()?;
    Ok(largest.f_to_kind(Kind::Double)?.f_double_value(&[])?)
}

/// Largest difference between the gradient of a scalar and its central differences over `step` in
/// f64, relative to the largest of the gradient.
///
/// # Errors
/// What `value` gives.
pub fn gradient_error(
    x: &Tensor,
    step: f64,
    value: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<f64> {
    let x = x.f_to_kind(Kind::Double)?;
    let leaf = leaf(&x)?;
    value(&leaf)?.f_backward()?;
    let gradient = leaf.f_grad()?;
    if !gradient.defined() {
        return Ok(f64::INFINITY);
    }
    let mut differences = Vec::with_capacity(x.numel());
    for idx in 0..x.numel() {
        let mut moved = vec![0.0; x.numel()];
        if let Some(at) = moved.get_mut(idx) {
            *at = step;
        }
        let step_at = Tensor::f_from_slice(&moved)?.f_view(x.size().as_slice())?;
        let (above, below) = (value(&x.f_add(&step_at)?)?, value(&x.f_sub(&step_at)?)?);
        differences.push((above.f_double_value(&[])? - below.f_double_value(&[])?) / (2.0 * step));
    }
    relative(
        &Tensor::f_from_slice(&differences)?,
        &gradient.f_reshape([-1i64])?,
    )
}
