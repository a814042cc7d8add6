use std::any::Any;
use std::fmt::Debug;

use tch::Tensor;

use crate::error::Result;
use crate::nn::{MixerContext, MixerState, PartWeights, PortTap};
use crate::parts::{Active, Cost, Norm, Port, Ports, Role};

/// What reads the residual stream and gives what is added to it: attention, an MLP. Data, made by
/// an architecture for each layer; a family in a library may bring its own.
///
/// # Law
/// `load` asks for weights by roles that the architecture declares for the same part. What runs is
/// differentiable, and a position of a causal model depends on earlier ones alone; with a state,
/// new tokens give the same as all tokens at once.
pub trait Mixer: Debug + Send + Sync + Any {
    /// What it is called in messages: `attention`.
    fn name(&self) -> &'static str;

    /// Its projections that read the stream, and the one that writes to it.
    fn ports(&self) -> Ports;

    /// Where units of its dims are seen.
    fn observed(&self) -> Vec<Observed>;

    /// Every port that it shows, besides [`Port::STREAM`], [`Port::INPUT`] and [`Port::OUTPUT`].
    fn shows(&self) -> Vec<Port>;

    /// Norms inside it, by role: what fresh weights of them are depends on their kind.
    fn norms(&self) -> Vec<(Role, Norm)> {
        Vec::new()
    }

    /// Those of its norms that are over units of its dims, with where their outputs show: fewer
    /// units change what they divide by.
    fn norms_over_units(&self) -> Vec<(Role, Port)> {
        Vec::new()
    }

    /// Factors of its weights that undo what fewer units of a dim (`kept` of them) rescale by their
    /// number alone: it is asked in the source's size.
    fn rescales(&self, _kind: &str, _kept: usize) -> Vec<Rescale> {
        Vec::new()
    }

    /// What it costs beside its weights, given the sizes of its layer's dims by kind (0 for one
    /// that is not there).
    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost;

    /// Units of which a token goes through some alone.
    fn active(&self) -> Option<Active> {
        None
    }

    /// A number of a fresh weight, from a draw in [0, 1), of those that are neither norms nor drawn
    /// as matrices are.
    fn fresh(&self, _role: Role, _draw: f64) -> Option<f64> {
        None
    }

    /// Tokens up to which states of earlier ones hold: in a longer sequence all of it turns
    /// otherwise (longrope), and is computed anew.
    fn states_hold_for(&self) -> Option<usize> {
        None
    }

    /// Whether it stands for a part that is not there: nothing is computed, loaded or shown at its
    /// place.
    fn is_absent(&self) -> bool {
        false
    }

    /// Why it cannot be computed, where that is so: a kind of rope that is not known.
    fn obstacle(&self) -> Option<String> {
        None
    }

    /// Reads its weights.
    ///
    /// # Errors
    /// As reading a file does.
    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>>;
}

/// A mixer with its weights. B batch, T tokens, E embed.
pub trait RunMixer: Debug {
    /// From what it reads, x [B, T, E], to what it gives, [B, T, E]. `tap` is shown the mixer's
    /// ports.
    ///
    /// # Errors
    /// As tensor operations do.
    fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        state: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor>;
}

/// A factor of a weight (and its bias) or of a norm's gain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescale {
    /// Whose.
    pub role: Role,
    /// The factor.
    pub factor: f64,
    /// Whether it holds where what goes is zero alone, as with norms over it.
    pub assumes_zeros: bool,
}

/// Units of a dim as a mixer shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Kind of the dim.
    pub kind: &'static str,
    /// Where.
    pub port: Port,
    /// Channels of one unit there.
    pub width: usize,
}
