//! What a model is made of, as data: layers are lists of sublayers, and a sublayer is a mixer with
//! norms around it.

use std::sync::Arc;

use super::{Activation, Norm};
use crate::mixers::Mixer;

/// The sublayers of one layer, in the order in which they add to the residual stream. A layer
/// without any is the identity.
#[derive(Debug, Clone, Default)]
pub struct Layer(pub Vec<Sublayer>);

/// One mixer and what stands around it.
///
/// ```text
/// y = after_sum( x + scale · post( mixer( pre(r) ) ) )        r = x, or what entered the layer
/// ```
#[derive(Debug, Clone)]
pub struct Sublayer {
    /// What reads the stream and adds to it.
    pub mixer: Arc<dyn Mixer>,
    /// On what the mixer reads ([`Role::INPUT_NORM`](super::Role::INPUT_NORM)).
    pub pre: Option<Norm>,
    /// On what the mixer gives ([`Role::OUTPUT_NORM`](super::Role::OUTPUT_NORM)).
    pub post: Option<Norm>,
    /// On the stream after the sum ([`Role::SUM_NORM`](super::Role::SUM_NORM)).
    pub after_sum: Option<Norm>,
    /// Factor of what is added.
    pub scale: f64,
    /// Whether it reads what entered the layer, beside the sublayers before it, rather than what
    /// they left.
    pub reads_layer_input: bool,
}

impl Sublayer {
    /// A mixer alone.
    pub fn new(mixer: impl Mixer) -> Self {
        Self::of(Arc::new(mixer))
    }

    /// The same of a mixer that is shared.
    pub fn of(mixer: Arc<dyn Mixer>) -> Self {
        Sublayer {
            mixer,
            pre: None,
            post: None,
            after_sum: None,
            scale: 1.0,
            reads_layer_input: false,
        }
    }

    /// The same behind a norm.
    #[must_use]
    pub fn pre(self, norm: Norm) -> Self {
        Sublayer {
            pre: Some(norm),
            ..self
        }
    }

    /// The same with a norm on what is added.
    #[must_use]
    pub fn post(self, norm: Norm) -> Self {
        Sublayer {
            post: Some(norm),
            ..self
        }
    }

    /// The same with a norm on the sum.
    #[must_use]
    pub fn after_sum(self, norm: Norm) -> Self {
        Sublayer {
            after_sum: Some(norm),
            ..self
        }
    }
}

/// What comes before the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// On the sum of the tables' rows.
    pub norm: Option<Norm>,
    /// Factor of the token table's rows.
    pub scale: f64,
    /// Whether that factor is the root of the stream's width, so that a narrower student has
    /// another.
    pub scales_with_hidden: bool,
    /// Row of the position table for the first token.
    pub first_position: usize,
}

impl Default for Embedding {
    fn default() -> Self {
        Embedding {
            norm: None,
            scale: 1.0,
            scales_with_hidden: false,
            first_position: 0,
        }
    }
}

/// What makes logits of the last hidden state.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// A dense layer with a non-linearity and a norm before the projection, as BERT has it.
    pub transform: Option<(Activation, Norm)>,
    /// Factor of the logits.
    pub scale: f64,
    /// c · tanh(logits / c), after the factor.
    pub softcap: Option<f64>,
}

impl Default for Head {
    fn default() -> Self {
        Head {
            transform: None,
            scale: 1.0,
            softcap: None,
        }
    }
}
