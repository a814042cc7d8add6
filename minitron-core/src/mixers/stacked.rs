//! Experts that lie in one tensor: transposed, gate and up interleaved, with biases.

use tch::Tensor;

use crate::error::Result;
use crate::nn::{Linear, PartWeights, PortTap};
use crate::parts::{ParamKind, Port, Role};

/// Gate and up of all experts, [X | E | 2F], even columns activated; biases [X | 2F].
pub const EXPERTS_GATE_UP: Role = Role("experts' gate and up");
/// Second projections of all experts, [X | F | E]; biases [X | E].
pub const EXPERTS_DOWN: Role = Role("experts' down");

/// A gated MLP whose projections are held within bounds:
///
/// ```text
/// g = min(gate, limit)    u = max(min(up, limit), -limit)    g · σ(α·g) · (u + 1)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamped {
    /// Bound of both.
    pub limit: f64,
    /// α.
    pub slope: f64,
}

#[derive(Debug)]
pub(super) struct RunStacked {
    of: Clamped,
    gate_up: Stack,
    down: Stack,
}

/// [X | O | I] and [X | O].
#[derive(Debug)]
struct Stack {
    weight_xoi: Tensor,
    bias_xo: Option<Tensor>,
}

impl Stack {
    fn load(role: Role, weights: &mut PartWeights) -> Result<Self> {
        Ok(Stack {
            weight_xoi: weights.tensor(role, ParamKind::Weight)?,
            bias_xo: weights.tensor_opt(role, ParamKind::Bias)?,
        })
    }

    fn forward(&self, expert: i64, x_ni: &Tensor) -> Result<Tensor> {
        let bias_o = match &self.bias_xo {
            Some(bias_xo) => Some(bias_xo.f_select(0, expert)?),
            None => None,
        };
        let of_expert = Linear {
            weight_oi: self.weight_xoi.f_select(0, expert)?,
            bias_o,
        };
        of_expert.forward(x_ni)
    }
}

impl RunStacked {
    pub fn load(of: Clamped, weights: &mut PartWeights) -> Result<Self> {
        Ok(RunStacked {
            of,
            gate_up: Stack::load(EXPERTS_GATE_UP, weights)?,
            down: Stack::load(EXPERTS_DOWN, weights)?,
        })
    }

    /// What one expert makes of its tokens, from [N, E] to [N, E].
    pub fn forward(&self, expert: i64, x_ne: &Tensor, tap: &mut PortTap) -> Result<Tensor> {
        let both = self.gate_up.forward(expert, x_ne)?;
        let (n, width) = both.size2()?;
        let both = both.f_view([n, width / 2, 2])?;
        let (gate, up) = (both.f_select(2, 0)?, both.f_select(2, 1)?);
        tap.show(Port::PRE_ACTIVATION, &gate)?;
        tap.show(Port::FACTOR, &up)?;
        let Clamped { limit, slope } = self.of;
        let gate = gate.f_clamp_max(limit)?;
        let up = up.f_clamp_max(limit)?.f_clamp_min(-limit)?;
        let turned = gate.f_mul_scalar(slope)?.f_sigmoid()?;
        let inner_nf = gate.f_mul(&turned)?.f_mul(&up.f_add_scalar(1.0)?)?;
        tap.show(Port::NEURONS, &inner_nf)?;
        self.down.forward(expert, &inner_nf)
    }
}
