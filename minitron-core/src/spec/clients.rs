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
        ClientLimit {
            client: client.to_owned(),
            message: message.into(),
        }
    }
}

impl ModelSpec {
    /// The size of a kind of dim where `sizes` may say another one.
    pub fn size_at(&self, kind: &str, sizes: &Sizes) -> usize {
        self.sizes_at(kind, sizes)
            .next()
            .unwrap_or_else(|| sizes.get(kind).copied().unwrap_or(0))
    }

    /// The same of every layer that has its own, but for those whose part goes.
    pub fn sizes_at<'a>(
        &'a self,
        kind: &'a str,
        sizes: &'a Sizes,
    ) -> impl Iterator<Item = usize> + 'a {
        let of_kind = sizes.get(kind);
        let all = self.dims_of(kind).map(move |dim| {
            let own = sizes.get(&dim.name).or(of_kind);
            own.copied().unwrap_or(dim.size)
        });
        all.filter(|size| *size > 0)
    }

    /// Query heads x channels of a head, where that is not the width of the residual stream:
    /// several programs compute one from the other.
    pub fn attention_width_beside_hidden(&self, sizes: &Sizes) -> Option<usize> {
        let width = self
            .size_at(HEADS, sizes)
            .saturating_mul(self.head_dim_at(sizes));
        (width != self.size_at(HIDDEN, sizes)).then_some(width)
    }

    /// Devices over which the model can be split by tensor parallelism, as vLLM does: they divide
    /// the heads and the MLP, and they divide the key/value heads or the reverse.
    pub fn tensor_parallel_at(&self, sizes: &Sizes) -> Vec<usize> {
        (1..=self.sizes_at(HEADS, sizes).min().unwrap_or(0))
            .filter(|&n_devices| self.splits_over(n_devices, sizes))
            .collect()
    }

    fn splits_over(&self, n: usize, sizes: &Sizes) -> bool {
        let (mut heads, mut mlp) = (self.sizes_at(HEADS, sizes), self.sizes_at(MLP, sizes));
        let mut kv_heads = self.sizes_at(KV_HEADS, sizes);
        heads.all(|size| size.is_multiple_of(n))
            && mlp.all(|size| size.is_multiple_of(n))
            && kv_heads.all(|size| size.is_multiple_of(n) || n.is_multiple_of(size.max(1)))
    }
}
