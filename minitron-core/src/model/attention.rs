//! Multi-head attention with grouped key/value heads.

use tch::Tensor;

use super::cache::LayerCache;
use super::layers::Linear;
use super::layout::Layout;
use super::tap::{Site, Tap};
use super::weights::Weights;
use crate::blueprint::{HEADS, KV_HEADS, Role, Slot, dim_of_layer};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Attention {
    layer_idx: usize,
    inputs: Inputs,
    output: Linear,
    n_heads: i64,
    n_kv_heads: i64,
    head_dim: i64,
    causal: bool,
}

#[derive(Debug)]
enum Inputs {
    Split { query: Linear, key: Linear, value: Linear },
    Fused(Linear),
}

impl Attention {
    pub fn load(weights: &mut Weights, layer_idx: usize) -> Result<Self> {
        let layer = Some(layer_idx);
        let blueprint = weights.blueprint;
        let size = |kind: &str| blueprint.dims.get(&dim_of_layer(kind, layer_idx)).map(|dim| dim.size as i64);
        let n_heads = blueprint.dim(&dim_of_layer(HEADS, layer_idx))?.size as i64;
        let inputs = if blueprint.find(Role::QueryKeyValue, Slot::Weight, layer).is_some() {
            Inputs::Fused(weights.linear(Role::QueryKeyValue, layer)?)
        } else {
            Inputs::Split {
                query: weights.linear(Role::Query, layer)?,
                key: weights.linear(Role::Key, layer)?,
                value: weights.linear(Role::Value, layer)?,
            }
        };
        Ok(Attention {
            layer_idx,
            inputs,
            output: weights.linear(Role::AttentionOutput, layer)?,
            n_heads,
            n_kv_heads: size(KV_HEADS).unwrap_or(n_heads),
            head_dim: blueprint.options.head_dim as i64,
            causal: blueprint.options.causal,
        })
    }

    /// x [B, T, E] to [B, T, E].
    pub fn forward(
        &self,
        x_bte: &Tensor,
        layout: &Layout,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let (n_batch, n_tokens, _) = x_bte.size3()?;
        let (query, key, value) = self.project(x_bte, n_batch, n_tokens)?;
        for (site, heads) in [
            (Site::Query(self.layer_idx), &query),
            (Site::Key(self.layer_idx), &key),
            (Site::Value(self.layer_idx), &value),
        ] {
            if tap.wants(site) {
                tap.see(site, &heads.f_reshape([n_batch, n_tokens, -1])?)?;
            }
        }
        let turn = |x: Tensor| layout.rope.as_ref().map_or(Ok(x.shallow_clone()), |rope| rope.apply(&x));
        let query_bhtk = turn(query)?.f_transpose(1, 2)?;
        let mut key_bgtk = turn(key)?.f_transpose(1, 2)?;
        let mut value_bgtk = value.f_transpose(1, 2)?;
        if let Some(cache) = cache {
            (key_bgtk, value_bgtk) = cache.extend(&key_bgtk, &value_bgtk)?;
        }
        // A single new token sees all that the cache holds; of a longer run behind one, the mask says it.
        let is_causal = self.causal && n_tokens > 1 && layout.mask.is_none();
        let context_bhtk = Tensor::f_scaled_dot_product_attention(
            &query_bhtk,
            &key_bgtk,
            &value_bgtk,
            layout.mask.as_ref(),
            0.0,
            is_causal,
            None,
            self.n_heads != self.n_kv_heads,
        )?;
        let context_btc =
            context_bhtk.f_transpose(1, 2)?.f_reshape([n_batch, n_tokens, self.n_heads * self.head_dim])?;
        if tap.wants(Site::AttentionHeads(self.layer_idx)) {
            tap.see(Site::AttentionHeads(self.layer_idx), &context_btc)?;
        }
        self.output.forward(&context_btc)
    }

    /// Queries [B, T, H, K], keys and values [B, T, G, K].
    fn project(&self, x_bte: &Tensor, n_batch: i64, n_tokens: i64) -> Result<(Tensor, Tensor, Tensor)> {
        let split = |x: &Tensor, n_heads: i64| x.f_view([n_batch, n_tokens, n_heads, self.head_dim]);
        match &self.inputs {
            Inputs::Split { query, key, value } => Ok((
                split(&query.forward(x_bte)?, self.n_heads)?,
                split(&key.forward(x_bte)?, self.n_kv_heads)?,
                split(&value.forward(x_bte)?, self.n_kv_heads)?,
            )),
            Inputs::Fused(fused) => {
                let all = split(&fused.forward(x_bte)?, self.n_heads + 2 * self.n_kv_heads)?;
                Ok((
                    all.f_narrow(2, 0, self.n_heads)?,
                    all.f_narrow(2, self.n_heads, self.n_kv_heads)?,
                    all.f_narrow(2, self.n_heads + self.n_kv_heads, self.n_kv_heads)?,
                ))
            }
        }
    }
}
