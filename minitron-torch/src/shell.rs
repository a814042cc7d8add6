//! Values whose memory comes and goes behind what points at them.

use tch::{TchError, Tensor};

use crate::ffi;

/// Versions by which autograd knows tensors while their values are here, and while they are not.
const HERE: i64 = 0;
const AWAY: i64 = 1;

/// One-dimensional values that graphs go on pointing at while their memory is elsewhere: what was
/// computed from them can be derived once the same values are here again, and nothing is held in
/// between. PyTorch's FSDP2 resizes storages to that end.
///
/// Memory without values is not to be read. So nobody is given the values while they are away, and
/// whoever shows them through a tensor [bars](bar) that until they are back: autograd then refuses
/// what it has kept of it.
#[derive(Debug)]
pub struct Shell {
    values: Tensor,
    /// What lent its memory, and has none now.
    lender: Option<Tensor>,
}

impl Shell {
    /// For `n` values of the type of `like`, which are not here yet.
    ///
    /// # Errors
    /// As libtorch's own does.
    pub fn new(n: i64, like: &Tensor) -> Result<Self, TchError> {
        let options = (like.f_kind()?, like.device());
        let values = Tensor::f_empty([n], options)?;
        ffi::swap_memory(&values, &Tensor::f_empty([0], options)?)?;
        let lender = None;
        Ok(Shell { values, lender })
    }

    /// Takes a tensor's memory, and with it what stands there: the values.
    ///
    /// # Errors
    /// `Torch` where they are here already, or the tensor is not as long or of another type.
    pub fn fill(&mut self, lender: Tensor) -> Result<&Tensor, TchError> {
        let is_alike = lender.size() == self.values.size()
            && lender.f_kind()? == self.values.f_kind()?
            && lender.is_contiguous();
        if !is_alike || self.lender.is_some() {
            let message = "expected values of the shell's own shape, and none in it";
            return Err(TchError::Torch(message.into()));
        }
        ffi::swap_memory(&self.values, &lender)?;
        self.lender = Some(lender);
        Ok(&self.values)
    }

    /// Gives the memory back to whom it is of; none where it is not here.
    ///
    /// # Errors
    /// As libtorch's own does.
    pub fn empty(&mut self) -> Result<Option<Tensor>, TchError> {
        if let Some(lender) = &self.lender {
            ffi::swap_memory(&self.values, lender)?;
        }
        Ok(self.lender.take())
    }
}

/// Has autograd refuse what it keeps of a tensor, until [`unbar`].
///
/// # Errors
/// As libtorch's own does.
pub fn bar(tensor: &Tensor) -> Result<(), TchError> {
    ffi::set_version(tensor, AWAY)
}

/// The same values are back: autograd may use what it keeps of a tensor.
///
/// # Errors
/// As libtorch's own does.
pub fn unbar(tensor: &Tensor) -> Result<(), TchError> {
    ffi::set_version(tensor, HERE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn lends(n: i64, shell: &mut Shell, weight: &mut Tensor) {
        let room = Tensor::arange(n, OPTIONS).f_add_scalar(1.0).unwrap();
        let view = shell.fill(room).unwrap().view([2, n / 2]);
        weight.set_data(&view);
        unbar(weight).unwrap();
    }

    fn takes(shell: &mut Shell, weight: &mut Tensor) -> Tensor {
        weight.set_data(&Tensor::zeros([1], OPTIONS).expand(weight.size(), false));
        bar(weight).unwrap();
        shell.empty().unwrap().unwrap()
    }

    #[test]
    fn a_graph_is_derived_once_its_values_are_back_and_not_before() {
        let mut weight = Tensor::zeros([2, 3], OPTIONS).set_requires_grad(true);
        let mut shell = Shell::new(6, &weight).unwrap();
        let x = Tensor::ones([4, 3], OPTIONS).set_requires_grad(true);
        let mut outputs = Vec::new();
        lends(6, &mut shell, &mut weight);
        for _ in 0..2 {
            // As it is, transposed, and as the kernel of a convolution.
            let y = x.linear(&weight, None::<&Tensor>).square();
            let kernel = weight.view([2, 1, 1, 3]).permute([0, 3, 1, 2]);
            let image = x.view([1, 4, 1, 3]).permute([0, 3, 1, 2]);
            let z = image.conv2d(&kernel, None::<&Tensor>, 1, 0, 1, 1);
            outputs.push(y.sum(Kind::Float) + z.sum(Kind::Float) * weight.sum(Kind::Float));
        }
        let room = takes(&mut shell, &mut weight);
        assert_eq!(room.sum(Kind::Float).double_value(&[]), 21.0);
        let refused = outputs.pop().unwrap().f_backward().unwrap_err().to_string();
        assert!(
            refused.contains("modified by an inplace operation"),
            "{refused}"
        );
        // What it came to before.
        for mut gradient in [x.grad(), weight.grad()] {
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        lends(6, &mut shell, &mut weight);
        outputs.pop().unwrap().f_backward().unwrap();
        let (found, n) = (x.grad(), weight.grad());
        let _ = takes(&mut shell, &mut weight);
        // By a graph whose weight has stayed.
        let stays = Tensor::arange(6, OPTIONS)
            .f_add_scalar(1.0)
            .unwrap()
            .view([2, 3]);
        let (stays, x) = (
            stays.set_requires_grad(true),
            x.detach().set_requires_grad(true),
        );
        let y = x.linear(&stays, None::<&Tensor>);
        let total = y.square().sum(Kind::Float) + y.sum(Kind::Float) * stays.sum(Kind::Float);
        total.backward();
        for (a, b) in [(found, x.grad()), (n, stays.grad())] {
            assert!(a.allclose(&b, 1e-6, 1e-6, false), "{a:?} {b:?}");
        }
    }

    #[test]
    fn memory_is_of_one_at_a_time_and_of_the_shells_own_length() {
        let like = Tensor::zeros([1], OPTIONS);
        let mut shell = Shell::new(8, &like).unwrap();
        assert!(shell.empty().unwrap().is_none());
        assert!(shell.fill(Tensor::zeros([9], OPTIONS)).is_err());
        assert!(
            shell
                .fill(Tensor::zeros([8], (Kind::Double, Device::Cpu)))
                .is_err()
        );
        shell.fill(Tensor::zeros([8], OPTIONS)).unwrap();
        assert!(shell.fill(Tensor::zeros([8], OPTIONS)).is_err());
        assert_eq!(shell.empty().unwrap().unwrap().size(), [8]);
    }

    /// Bytes in memory.
    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let told = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = told.split_whitespace().nth(1).unwrap();
        pages.parse::<usize>().unwrap() * 4096
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_graph_points_at_takes_no_memory_while_it_is_away() {
        const N: i64 = 12 << 20;
        let mut weight = Tensor::zeros([1], OPTIONS).expand([2, N / 2], false);
        weight = weight.set_requires_grad(true);
        let mut shell = Shell::new(N, &weight).unwrap();
        lends(N, &mut shell, &mut weight);
        let x = Tensor::ones([1, 1], OPTIONS).set_requires_grad(true);
        let y = weight.narrow(1, 0, 1).f_mul(&x).unwrap();
        let before = resident();
        let room = takes(&mut shell, &mut weight);
        drop(room);
        let freed = before.saturating_sub(resident());
        assert!(freed > 40 << 20, "{freed}");
        lends(N, &mut shell, &mut weight);
        y.sum(Kind::Float).backward();
        assert_eq!(x.grad().double_value(&[0, 0]), 2.0 + (N / 2) as f64);
    }
}
