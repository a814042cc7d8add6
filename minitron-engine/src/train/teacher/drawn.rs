//! Token ids drawn from a teacher's distribution (arXiv 2503.16870): of n draws with replacement an
//! id's share is its probability in the mean, so a gradient that is linear in the teacher's
//! distribution comes out whole in the mean over draws, which that of a cut distribution does not.
//! N rows, V ids that both models have.

use tch::{Device, Kind, Tensor};

use super::TeacherOutput;
use super::records::{CachedRows, Draws, Key};
use minitron_core::error::{Error, Result};
use minitron_core::model::Site;
use minitron_core::random::SplitMix;

/// Smaller probabilities are taken for this: where all mass is stored, the rest has none, and its
/// logarithm no end.
pub(super) const LEAST_LOG_P: f64 = -80.0;

/// One window of a batch.
pub(super) struct Window {
    pub key: Key,
    pub first_row: usize,
    pub n_rows: usize,
}

/// Numbers in [0, 1) to draw by [N·n], row after row and ascending in each: they follow from the
/// seed and the window's content, whatever batch, rank or run it is in.
pub(super) fn uniforms(draws: Draws, windows: &[Window]) -> Vec<f64> {
    let mut numbers = Vec::new();
    for window in windows {
        let mut seed = draws.seed;
        for &byte in &window.key {
            seed = SplitMix::new(seed ^ u64::from(byte)).bits();
        }
        let mut random = SplitMix::new(seed);
        for _ in 0..window.n_rows {
            let mut of_row: Vec<f64> = (0..draws.n).map(|_| random.unit()).collect();
            of_row.sort_by(f64::total_cmp);
            numbers.extend(of_row);
        }
    }
    numbers
}

/// For every row of logits [N, V] the ids that the numbers [N·n] draw, in their order: of each the
/// first whose cumulative probability is above it.
pub(super) fn drawn_rows(logits_nv: &Tensor, numbers: &[f64], into: &mut CachedRows) -> Result<()> {
    let (n_rows, vocab) = logits_nv.size2()?;
    let up_to_nv = logits_nv
        .f_softmax(-1, Kind::Double)?
        .f_cumsum(-1, Kind::Double)?;
    // What rounding leaves of the whole.
    let whole_n1 = up_to_nv.f_narrow(-1, vocab - 1, 1)?;
    let numbers_nd = Tensor::f_from_slice(numbers)?
        .f_view([n_rows, -1])?
        .f_to_device(logits_nv.device())?
        .f_mul(&whole_n1)?;
    let ids_nd = numbers_nd
        .f_searchsorted(&up_to_nv, false, true, "right", None::<&Tensor>)?
        .f_clamp_max(vocab - 1)?;
    let ids = Vec::<i64>::try_from(flat_on_cpu(&ids_nd)?)?;
    into.ids.extend(ids.into_iter().map(|id| id as u32));
    Ok(())
}

/// What was drawn for one batch, [N, n].
#[derive(Debug)]
pub(super) struct DrawnOutput {
    pub ids_nk: Tensor,
    pub vocab: i64,
}

impl TeacherOutput for DrawnOutput {
    /// Logarithms of the shares of the draws [len, V]; of what was not drawn, those of next to
    /// nothing.
    fn logits(&self, start: i64, len: i64, _student_nv: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let ids_nk = self.ids_nk.f_narrow(0, start, len)?;
        let (_, n) = ids_nk.size2()?;
        let options = (Kind::Float, ids_nk.device());
        let each_nk = Tensor::f_full([len, n], 1.0 / n as f64, options)?;
        let shares_nv = Tensor::f_zeros([len, self.vocab], options)?;
        Ok(shares_nv
            .f_scatter_add(-1, &ids_nk, &each_nk)?
            .f_log()?
            .f_clamp_min(LEAST_LOG_P)?)
    }

    fn states(&self, site: Site) -> Result<&Tensor> {
        no_states(site)
    }
}

pub(super) fn no_states<T>(site: Site) -> Result<T> {
    Err(Error::Internal(format!(
        "a teacher cache holds no states, {site:?} was asked for"
    )))
}

pub(super) fn flat_on_cpu(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_device(Device::Cpu)?.f_reshape([-1i64])?)
}
