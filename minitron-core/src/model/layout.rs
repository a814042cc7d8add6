//! What a layer has to know of a batch besides its stream.

use tch::Tensor;

use super::rope::Rope;

/// Token ids, and which of them are there: what a model is given. B batch, T tokens.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Token ids [B, T].
    pub ids_bt: &'a Tensor,
    /// Whether a position holds a token rather than filling on the right [B, T], boolean; none where all do.
    pub seen_bt: Option<&'a Tensor>,
    /// Each token's position in its document [B, T], where attention stays inside documents; none where it does not, and a
    /// sequence is one document.
    pub positions_bt: Option<&'a Tensor>,
}

/// Sequences of one length, nothing filled up.
impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(ids_bt: &'a Tensor) -> Self {
        Input { ids_bt, seen_bt: None, positions_bt: None }
    }
}

/// How the tokens of a batch lie: the rotation of their positions, where the family rotates, and which of them attention may
/// see, where that is neither all nor all before. Made by [`Frame::layout`](super::Frame::layout), the same for every layer.
#[derive(Debug, Default)]
pub struct Layout {
    pub(super) rope: Option<Rope>,
    /// Boolean: keys that are no filling, [B, 1, 1, T], what several tokens see behind those of a cache, [T, start + T], or
    /// what lies before in the same document, [B, 1, T, T]. Filling on the right lies after all that a causal position
    /// sees, so there is one of them at most.
    pub(super) mask: Option<Tensor>,
}
