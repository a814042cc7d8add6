//! Tokens by the expert that they go through.

use tch::Tensor;

use super::router::Routed;
use crate::error::Result;

/// Their places, sorted by expert.
pub(super) struct Lots {
    /// Places among N·R, expert after expert.
    order: Tensor,
    /// Of each expert.
    counts: Vec<i64>,
    /// Experts of a token.
    pub per_token: i64,
}

impl Lots {
    pub fn new(routed: &Routed, n_experts: i64) -> Result<Self> {
        let (_, per_token) = routed.expert_nr.size2()?;
        let flat = routed.expert_nr.f_reshape([-1])?;
        let (_, order) = flat.f_sort_stable(true, 0, false)?;
        let counts = flat.f_bincount(None::<Tensor>, n_experts)?;
        Ok(Lots {
            order,
            counts: Vec::<i64>::try_from(&counts)?,
            per_token,
        })
    }

    /// The experts with the places of their tokens.
    pub fn by_expert(&self) -> Result<Vec<(usize, Tensor)>> {
        let (mut start, mut lots) = (0, Vec::new());
        for (expert, &n) in self.counts.iter().enumerate() {
            lots.push((expert, self.order.f_narrow(0, start, n)?));
            start += n;
        }
        Ok(lots)
    }
}
