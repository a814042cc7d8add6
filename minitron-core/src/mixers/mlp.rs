//! The MLP of a layer.

use tch::Tensor;

use super::{Mixer, Observed, RunMixer};
use crate::error::{Present, Result};
use crate::nn::{Linear, MixerContext, MixerState, PartWeights, PortTap, activate};
use crate::parts::{Activation, Cost, MLP, Port, Ports, Role};

/// down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Non-linearity.
    pub activation: Activation,
    /// How the first projections are stored.
    pub gate: Gate,
}

/// Whether an MLP is gated, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Not at all.
    None,
    /// By a matrix of its own.
    Split,
    /// By one matrix with `up`: first all rows that are activated, then the others.
    Fused,
}

impl Mixer for Mlp {
    fn name(&self) -> &'static str {
        "mlp"
    }

    fn ports(&self) -> Ports {
        let readers = match self.gate {
            Gate::None => vec![Role::UP],
            Gate::Split => vec![Role::GATE, Role::UP],
            Gate::Fused => vec![Role::GATE_UP],
        };
        Ports::new(readers, Role::DOWN, Port::NEURONS)
    }

    fn observed(&self) -> Vec<Observed> {
        vec![Observed {
            kind: MLP,
            port: Port::NEURONS,
            width: 1,
        }]
    }

    fn shows(&self) -> Vec<Port> {
        match self.gate {
            Gate::None => vec![Port::PRE_ACTIVATION, Port::NEURONS],
            _ => vec![Port::PRE_ACTIVATION, Port::FACTOR, Port::NEURONS],
        }
    }

    /// Projections and products.
    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        let copies = if self.gate == Gate::None { 2 } else { 4 };
        Cost {
            inside: (size(MLP) as u64).saturating_mul(copies),
            ..Cost::default()
        }
    }

    fn obstacle(&self) -> Option<String> {
        self.activation.obstacle()
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        let first = match self.gate {
            Gate::None => First::Plain(weights.linear(Role::UP)?),
            Gate::Split => First::Gated {
                gate: weights.linear(Role::GATE)?,
                up: weights.linear(Role::UP)?,
            },
            Gate::Fused => First::Fused(weights.linear(Role::GATE_UP)?),
        };
        Ok(Box::new(RunMlp {
            first,
            down: weights.linear(Role::DOWN)?,
            activation: self.activation,
        }))
    }
}

#[derive(Debug)]
struct RunMlp {
    first: First,
    down: Linear,
    activation: Activation,
}

#[derive(Debug)]
enum First {
    Plain(Linear),
    Gated { gate: Linear, up: Linear },
    Fused(Linear),
}

impl RunMixer for RunMlp {
    fn forward(
        &self,
        x_bte: &Tensor,
        _: &MixerContext,
        _: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        let (activated, factor) = match &self.first {
            First::Plain(up) => (up.forward(x_bte)?, None),
            First::Gated { gate, up } => (gate.forward(x_bte)?, Some(up)),
            First::Fused(both) => {
                let both = both.forward(x_bte)?;
                let half = both.size().last().copied().present("gate and up")? / 2;
                let (gate, up) = (both.f_narrow(-1, 0, half)?, both.f_narrow(-1, half, half)?);
                tap.show(Port::PRE_ACTIVATION, &gate)?;
                tap.show(Port::FACTOR, &up)?;
                let inner_btf = activate(&gate, self.activation)?.f_mul(&up)?;
                tap.show(Port::NEURONS, &inner_btf)?;
                return self.down.forward(&inner_btf);
            }
        };
        tap.show(Port::PRE_ACTIVATION, &activated)?;
        let activated = activate(&activated, self.activation)?;
        let inner_btf = match factor {
            Some(up) => {
                let up_btf = up.forward(x_bte)?;
                tap.show(Port::FACTOR, &up_btf)?;
                activated.f_mul(&up_btf)?
            }
            None => activated,
        };
        tap.show(Port::NEURONS, &inner_btf)?;
        self.down.forward(&inner_btf)
    }
}
