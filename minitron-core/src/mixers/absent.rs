//! The place of a part that is not there.

use tch::Tensor;

use super::{Mixer, Observed, RunMixer};
use crate::error::Result;
use crate::nn::{MixerContext, MixerState, PartWeights, PortTap};
use crate::parts::{Cost, Port, Ports};

/// Nothing, where other layers have attention or an MLP: the parts beside it keep their numbers,
/// and the residual stream passes as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absent;

impl Mixer for Absent {
    fn name(&self) -> &'static str {
        "absent"
    }

    fn ports(&self) -> Ports {
        Ports {
            readers: Vec::new(),
            writer: None,
            of_units: None,
        }
    }

    fn observed(&self) -> Vec<Observed> {
        Vec::new()
    }

    fn shows(&self) -> Vec<Port> {
        Vec::new()
    }

    fn cost(&self, _size: &dyn Fn(&str) -> usize) -> Cost {
        Cost::default()
    }

    fn is_absent(&self) -> bool {
        true
    }

    fn load(&self, _weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        Ok(Box::new(Absent))
    }
}

impl RunMixer for Absent {
    fn forward(
        &self,
        x_bte: &Tensor,
        _: &MixerContext,
        _: Option<&mut MixerState>,
        _: &mut PortTap,
    ) -> Result<Tensor> {
        Ok(x_bte.f_zeros_like()?)
    }
}
