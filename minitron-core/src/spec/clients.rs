//! What programs that load written folders make of a model's sizes.

use serde::Serialize;

use super::{HEADS, HIDDEN, KV_HEADS, MLP, ModelSpec, Sizes};

/// A program that does not take a model at some sizes, although it takes the family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientLimit {
    /// The program, by its name.
    pub client: String,
    /// What it refuses, and what helps.
    pub message: String,
}

impl ClientLimit {
    /// A limit of this program.
    pub fn new(client: &str, message: impl Into<String>) -> Self {
        ClientLimit { client: client.to_owned(), message: message.into() }
    }
}

impl ModelSpec {
    /// The size of a kind of dim where `sizes` may say another one.
    pub fn size_at(&self, kind: &str, sizes: &Sizes) -> usize {
        sizes.get(kind).copied().unwrap_or_else(|| self.size(kind))
    }

    /// Query heads x channels of a head, where that is not the width of the residual stream: several programs compute one from
    /// the other.
    pub fn attention_width_beside_hidden(&self, sizes: &Sizes) -> Option<usize> {
        let width = self.size_at(HEADS, sizes).saturating_mul(self.head_dim_at(sizes));
        (width != self.size_at(HIDDEN, sizes)).then_some(width)
    }

    /// Devices over which the model can be split by tensor parallelism, as vLLM does: they divide the heads and the MLP, and
    /// they divide the key/value heads or the reverse.
    pub fn tensor_parallel_at(&self, sizes: &Sizes) -> Vec<usize> {
        let (heads, mlp) = (self.size_at(HEADS, sizes), self.size_at(MLP, sizes));
        let kv_heads = if self.size(KV_HEADS) == 0 { heads } else { self.size_at(KV_HEADS, sizes).max(1) };
        let splits = |n: &usize| {
            heads.is_multiple_of(*n)
                && mlp.is_multiple_of(*n)
                && (kv_heads.is_multiple_of(*n) || n.is_multiple_of(kv_heads))
        };
        (1..=heads).filter(splits).collect()
    }
}
