//! Operations on lists of tensors: on a GPU a few kernels, however many tensors there are.

use tch::{TchError, Tensor};

use crate::ffi::{self, RawStep};

/// Constants of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decay of the weights towards zero.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Updates, this one included.
    pub n_steps: u64,
}

/// What an update changes and reads: lists of one length, tensors of one shape at each place, all
/// dense, of one type (f32) and on one device.
#[derive(Debug, Clone, Copy)]
pub struct AdamWLists<'a> {
    /// Changed.
    pub weights: &'a [Tensor],
    /// Read; where there is a divisor, divided by it in place.
    pub gradients: &'a [Tensor],
    /// First moments, changed.
    pub ms: &'a [Tensor],
    /// Second moments, changed.
    pub vs: &'a [Tensor],
    /// A scalar in f32 on the device, by which gradients are divided first: so a norm clips them
    /// without the host's knowing it.
    pub divisor: Option<&'a Tensor>,
}

/// AdamW on all tensors at once:
///
/// ```text
/// g ← g / divisor        m ← m + (1 − β1)·(g − m)        v ← β2·v + (1 − β2)·g²
/// w ← w·(1 − lr·λ) − lr / (1 − β1ᵗ) · m / (sqrt(v) / sqrt(1 − β2ᵗ) + ε)
/// ```
///
/// # Errors
/// `Torch` for lists that do not fit together, or a device without such a kernel.
pub fn fused_adamw(lists: AdamWLists, step: AdamWStep) -> Result<(), TchError> {
    let constants = RawStep {
        lr: step.lr,
        beta1: step.beta1,
        beta2: step.beta2,
        weight_decay: step.weight_decay,
        eps: step.eps,
        n_steps: step.n_steps as f64,
    };
    let changed = [lists.weights, lists.gradients, lists.ms, lists.vs];
    ffi::fused_adamw(changed, &constants, lists.divisor)
}

/// The L2 norm of each, scalars in f32 on the device, whatever the tensors are in.
///
/// # Errors
/// As libtorch's own does.
pub fn foreach_norm(tensors: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    ffi::foreach_norm(tensors)
}

/// Each of `from` into its like in `into`, which may be of another type.
///
/// # Errors
/// `Torch` for lists that do not fit together.
pub fn foreach_copy(into: &[Tensor], from: &[Tensor]) -> Result<(), TchError> {
    ffi::foreach_copy(into, from)
}

/// Zeros in all of them.
///
/// # Errors
/// As libtorch's own does.
pub fn foreach_zero(tensors: &[Tensor]) -> Result<(), TchError> {
    ffi::foreach_zero(tensors)
}

/// The numbers of all tensors of one device, one after the other, as f64: the host waits for the
/// device once. What is narrower is read exactly.
///
/// # Errors
/// `Torch` where tensors lie on several devices.
pub fn read(tensors: &[Tensor]) -> Result<Vec<f64>, TchError> {
    if tensors.is_empty() {
        return Ok(Vec::new());
    }
    ffi::read(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn random(shapes: &[&[i64]]) -> Vec<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        shapes
            .iter()
            .map(|shape| Tensor::randn(*shape, options))
            .collect()
    }

    #[test]
    fn fused_adamw_is_the_formula() {
        tch::manual_seed(1);
        let shapes: [&[i64]; 3] = [&[7, 5], &[130], &[1]];
        let [weights, gradients, ms] = [(); 3].map(|()| random(&shapes));
        let vs: Vec<Tensor> = random(&shapes).iter().map(Tensor::square).collect();
        let step = AdamWStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.1,
            eps: 1e-8,
            n_steps: 3,
        };
        let divisor = Tensor::from(2.5f32);
        let double = |list: &[Tensor]| -> Vec<Tensor> {
            list.iter().map(|x| x.to_kind(Kind::Double)).collect()
        };
        let before = [&weights, &gradients, &ms, &vs].map(|list| double(list));
        let lists = AdamWLists {
            weights: &weights,
            gradients: &gradients,
            ms: &ms,
            vs: &vs,
            divisor: Some(&divisor),
        };
        fused_adamw(lists, step).unwrap();
        for (idx, weight) in weights.iter().enumerate() {
            let [w, g, m, v] = [0, 1, 2, 3].map(|list: usize| &before[list][idx]);
            let g = g / 2.5;
            let m = m * 0.9 + &g * 0.1;
            let v = v * 0.95 + g.square() * 0.05;
            let root = v.sqrt() / (1.0 - 0.95f64.powi(3)).sqrt() + 1e-8;
            let expected = w * (1.0 - 1e-2 * 0.1) - &m / root * (1e-2 / (1.0 - 0.9f64.powi(3)));
            for (ours, theirs) in [(weight, &expected), (&ms[idx], &m), (&vs[idx], &v)] {
                let error = (ours - theirs).abs().max().double_value(&[]);
                assert!(
                    error <= 1e-6 * theirs.abs().max().double_value(&[]),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn norms_copies_and_zeros_are_those_of_each_tensor() {
        tch::manual_seed(2);
        let all = random(&[&[33, 4], &[9], &[1]]);
        let norms = read(&foreach_norm(&all).unwrap()).unwrap();
        for (tensor, norm) in all.iter().zip(norms) {
            assert!((tensor.norm().double_value(&[]) - norm).abs() <= 1e-6 * norm);
        }
        let narrow: Vec<Tensor> = all.iter().map(|x| x.to_kind(Kind::BFloat16)).collect();
        foreach_copy(&all, &narrow).unwrap();
        assert!(
            all.iter()
                .zip(&narrow)
                .all(|(a, b)| a.equal(&b.to_kind(Kind::Float)))
        );
        foreach_zero(&all).unwrap();
        assert!(all.iter().all(|x| x.abs().max().double_value(&[]) == 0.0));
    }

    #[test]
    fn lists_that_do_not_fit_together_are_errors() {
        let (one, two) = (random(&[&[3]]), random(&[&[3], &[4]]));
        assert!(foreach_copy(&one, &two).is_err());
        let other = random(&[&[4]]);
        let copied = foreach_copy(&one, &other).unwrap_err().to_string();
        assert!(copied.contains("size"), "{copied}");
        let lists = AdamWLists {
            weights: &two,
            gradients: &one,
            ms: &two,
            vs: &two,
            divisor: None,
        };
        let step = AdamWStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.1,
            eps: 1e-8,
            n_steps: 1,
        };
        assert!(fused_adamw(lists, step).is_err());
    }
}
