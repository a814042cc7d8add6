//! x·Wᵀ + b, by the library that this processor is fastest with. N rows, I inputs, O outputs.

use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Rows and weights below which the way through another library costs more than it brings.
const MIN_ROWS: i64 = 128;
const MIN_WEIGHTS: usize = 1 << 16;
/// Outputs from which on a convolution is slower than a product.
const WIDE: i64 = 8192;

/// x [.., I] · W [O, I]ᵀ + b [O]. Differentiable.
///
/// On processors with AVX-512 that are not Intel's, the MKL that libtorch multiplies f32 matrices
/// with keeps to AVX2, while oneDNN, which comes with it too, does not; everywhere else this is
/// libtorch's own `linear`.
pub fn linear(x: &Tensor, weight_oi: &Tensor, bias_o: Option<&Tensor>) -> Result<Tensor> {
    let mut shape = x.size();
    let (Some(last), &[n_outputs, n_inputs]) = (shape.last_mut(), weight_oi.size().as_slice())
    else {
        return Ok(x.f_linear(weight_oi, bias_o)?);
    };
    *last = n_outputs;
    let n_rows = x.numel() as i64 / n_inputs.max(1);
    let is_large = n_rows >= MIN_ROWS && weight_oi.numel() >= MIN_WEIGHTS;
    if !(is_large && prefers_onednn() && is_plain(x)? && is_plain(weight_oi)?) {
        return Ok(x.f_linear(weight_oi, bias_o)?);
    }
    let x_ni = x.f_reshape([n_rows, n_inputs])?;
    let by = if n_outputs < WIDE {
        by_convolution
    } else {
        by_product
    };
    Ok(by(&x_ni, weight_oi, bias_o)?.f_reshape(shape)?)
}

/// Whether it is f32 on the CPU.
fn is_plain(t: &Tensor) -> Result<bool> {
    Ok(t.device() == Device::Cpu && t.f_kind()? == Kind::Float)
}

/// A map of rows as a convolution of one by one over channels that lie last: no copy on either
/// side.
fn by_convolution(x_ni: &Tensor, weight_oi: &Tensor, bias_o: Option<&Tensor>) -> Result<Tensor> {
    let ((n_rows, n_inputs), n_outputs) = (x_ni.size2()?, weight_oi.size2()?.0);
    let image = channels_last(x_ni, [1, n_rows, 1, n_inputs])?;
    let kernel = channels_last(weight_oi, [n_outputs, 1, 1, n_inputs])?;
    let output = image.f_conv2d(&kernel, bias_o, [1i64], [0i64], [1i64], 1)?;
    Ok(output
        .f_permute([0, 2, 3, 1])?
        .f_reshape([n_rows, n_outputs])?)
}

/// An image of this shape, whose channels lie last in memory.
fn channels_last(t: &Tensor, shape: [i64; 4]) -> Result<Tensor> {
    Ok(t.f_contiguous()?.f_view(shape)?.f_permute([0, 3, 1, 2])?)
}

/// oneDNN's own product, between copies into its layout and back.
fn by_product(x_ni: &Tensor, weight_oi: &Tensor, bias_o: Option<&Tensor>) -> Result<Tensor> {
    let output_no = x_ni
        .f_to_mkldnn(None)?
        .f_mkldnn_linear(&weight_oi.f_contiguous()?, bias_o)?;
    Ok(output_no.f_to_dense(None, false)?)
}

fn prefers_onednn() -> bool {
    static PREFERS: OnceLock<bool> = OnceLock::new();
    *PREFERS.get_or_init(has_avx512_of_another_make)
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_of_another_make() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
    vendor != b"GenuineIntel" && std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512_of_another_make() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    type Linear = fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>;

    /// Value and gradients by x, W and b of a weighted sum of the outputs.
    fn all_of(linear: Linear, x: &Tensor, w: &Tensor, b: &Tensor) -> [Tensor; 4] {
        let [x, w, b] = [x, w, b].map(|t| t.detach().copy().set_requires_grad(true));
        let y = linear(&x, &w, Some(&b)).unwrap();
        let weights = Tensor::arange(y.numel() as i64, (Kind::Float, Device::Cpu))
            .f_sin()
            .unwrap()
            .view_as(&y);
        y.f_mul(&weights).unwrap().sum(Kind::Float).backward();
        [y.detach(), x.grad(), w.grad(), b.grad()]
    }

    #[test]
    fn both_ways_give_the_product_and_its_gradients() {
        tch::manual_seed(1);
        let plain: Linear = |x, w, b| Ok(x.f_linear(w, b)?);
        for ((n_rows, n_inputs, n_outputs), way) in [
            ((130, 96, 200), by_convolution as Linear),
            ((33, 65, 8200), by_product),
            ((1, 8, 5), by_convolution),
        ] {
            let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let (x, w, b) = (
                random(&[n_rows, n_inputs]),
                random(&[n_outputs, n_inputs]),
                random(&[n_outputs]),
            );
            for (ours, theirs) in all_of(way, &x, &w, &b)
                .iter()
                .zip(all_of(plain, &x, &w, &b))
            {
                let error = ours.f_sub(&theirs).unwrap().abs().max().double_value(&[]);
                let size = theirs.abs().max().double_value(&[]);
                assert!(
                    error <= 2e-6 * size,
                    "{n_rows} x {n_inputs} x {n_outputs}: {error} of {size}"
                );
            }
        }
    }
}
