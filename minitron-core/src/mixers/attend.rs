//! Who looks at whom: whole sequences, or blocks of them where a window is shorter, so that a
//! window costs what it holds.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::nn::{MixerContext, blocks};

/// Keys and values [B, G, S, K].
pub(super) struct Keys<'a> {
    pub key_bgsk: &'a Tensor,
    pub value_bgsk: &'a Tensor,
}

/// How scores become weights.
#[derive(Clone, Copy)]
pub(super) struct Rule<'a> {
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor of the products; 1/sqrt(head_dim) where not given.
    pub scale: Option<f64>,
    /// c · tanh(s / c) of the scores.
    pub softcap: Option<f64>,
    /// Tokens that a position sees behind itself, where not all.
    pub reach: Option<usize>,
    /// Logits that join each head's softmax \[H\].
    pub sinks_h: Option<&'a Tensor>,
}

/// From queries [B, H, T, K] to what their heads give, [B, H, T, K].
pub(super) fn attend(
    rule: Rule,
    query_bhtk: &Tensor,
    keys: &Keys,
    context: &MixerContext,
) -> Result<Tensor> {
    let n_tokens = context.n_tokens;
    let n_keys = keys.key_bgsk.size4()?.2;
    match rule
        .reach
        .map(|reach| reach as i64)
        .filter(|&reach| reach + 1 < n_keys)
    {
        None => {
            // A single new token sees all that the state holds; of a longer run behind one, the
            // mask says it.
            let mask = context.mask()?;
            let is_causal = context.causal && n_tokens > 1 && mask.is_none();
            softmax_of(rule, query_bhtk, keys, mask.as_deref(), is_causal)
        }
        Some(reach)
            if context.start > 0 || context.has_documents() || n_tokens <= 2 * reach.max(1) =>
        {
            softmax_of(
                rule,
                query_bhtk,
                keys,
                Some(context.window_mask(reach, n_keys)?.as_ref()),
                false,
            )
        }
        Some(reach) => in_blocks(rule, query_bhtk, keys, context, reach),
    }
}

/// Blocks of as many queries as they reach back see their own block and the one before (in an
/// encoder, the one after too).
fn in_blocks(
    rule: Rule,
    query_bhtk: &Tensor,
    keys: &Keys,
    context: &MixerContext,
    reach: i64,
) -> Result<Tensor> {
    let (n_batch, n_heads, n_tokens, head_dim) = query_bhtk.size4()?;
    let block = reach.max(1);
    let (n_blocks, n_keys) = (blocks(n_tokens, block), context.keys_of_block(block));
    let padding = n_blocks * block - n_tokens;
    let after = padding + n_keys - 2 * block;
    let key_ngck = in_windows(keys.key_bgsk, after, n_keys, block)?;
    let value_ngck = in_windows(keys.value_bgsk, after, n_keys, block)?;
    let query_bhnqk = query_bhtk
        .f_constant_pad_nd([0, 0, 0, padding])?
        .f_reshape([n_batch, n_heads, n_blocks, block, head_dim])?;
    let query_nhqk =
        query_bhnqk
            .f_transpose(1, 2)?
            .f_reshape([n_batch * n_blocks, n_heads, block, head_dim])?;
    let mask = context.band_mask(n_batch, block, reach)?;
    let windows = Keys {
        key_bgsk: &key_ngck,
        value_bgsk: &value_ngck,
    };
    let out_nhqk = softmax_of(rule, &query_nhqk, &windows, Some(mask.as_ref()), false)?;
    let out_bhnqk = out_nhqk
        .f_reshape([n_batch, n_blocks, n_heads, block, head_dim])?
        .f_transpose(1, 2)?;
    Ok(out_bhnqk
        .f_reshape([n_batch, n_heads, n_blocks * block, head_dim])?
        .f_narrow(2, 0, n_tokens)?)
}

/// x [B, G, S, K] to [B·N, G, C, K]: N windows of C keys, each a block after the one before. In
/// front of it comes a block of zeros, and `after` of them behind it.
fn in_windows(x_bgsk: &Tensor, after: i64, n_keys: i64, block: i64) -> Result<Tensor> {
    let padded_bgsk = x_bgsk.f_constant_pad_nd([0, 0, block, after])?;
    let x_bgnkc = padded_bgsk.f_unfold(2, n_keys, block)?;
    let (n_batch, n_groups, n_blocks, head_dim, _) = x_bgnkc.size5()?;
    let x_bngck = x_bgnkc.f_permute([0, 2, 1, 4, 3])?;
    Ok(x_bngck.f_reshape([n_batch * n_blocks, n_groups, n_keys, head_dim])?)
}

/// x [B, G, S, K] with each group as often as it has query heads.
fn repeated(x: &Tensor, n_heads: i64) -> Result<Tensor> {
    let n_groups = x.size4()?.1;
    if n_heads == n_groups {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_repeat_interleave_self_int(n_heads / n_groups, 1, None)?)
}

/// Whether libtorch's kernels that hold no scores want a key for every query head: on a GPU the one
/// for f32 or masks does; the one that groups heads takes half precision, and no mask.
fn wants_equal_heads(query: &Tensor, mask: Option<&Tensor>) -> Result<bool> {
    let is_half = matches!(query.f_kind()?, Kind::BFloat16 | Kind::Half);
    Ok(query.device() != Device::Cpu && (mask.is_some() || !is_half))
}

/// libtorch's own; with `repeats`, of keys and values that are repeated for each query head first.
fn fused(
    rule: Rule,
    query: &Tensor,
    keys: &Keys,
    (mask, is_causal): (Option<&Tensor>, bool),
    repeats: bool,
) -> Result<Tensor> {
    let n_heads = query.size4()?.1;
    let n_repeated = if repeats {
        n_heads
    } else {
        keys.key_bgsk.size4()?.1
    };
    Ok(Tensor::f_scaled_dot_product_attention(
        query,
        &repeated(keys.key_bgsk, n_repeated)?,
        &repeated(keys.value_bgsk, n_repeated)?,
        mask,
        0.0,
        is_causal,
        rule.scale,
        n_heads != n_repeated,
    )?)
}

/// Attention proper; by hand where scores are capped or sinks join them, which libtorch's own does
/// not.
fn softmax_of(
    rule: Rule,
    query: &Tensor,
    keys: &Keys,
    mask: Option<&Tensor>,
    is_causal: bool,
) -> Result<Tensor> {
    let (n_heads, n_groups) = (query.size4()?.1, keys.key_bgsk.size4()?.1);
    if rule.softcap.is_none() && rule.sinks_h.is_none() {
        let repeats = n_heads != n_groups && wants_equal_heads(query, mask)?;
        return fused(rule, query, keys, (mask, is_causal), repeats);
    }
    let key = repeated(keys.key_bgsk, n_heads)?;
    let value = repeated(keys.value_bgsk, n_heads)?;
    let scale = rule.scale.unwrap_or(1.0 / (rule.head_dim as f64).sqrt());
    let mut scores = query
        .f_matmul(&key.f_transpose(-2, -1)?)?
        .f_mul_scalar(scale)?;
    if let Some(cap) = rule.softcap {
        scores = scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?;
    }
    let (n_batch, _, n_queries, n_keys) = scores.size4()?;
    if is_causal {
        let later =
            Tensor::f_ones([n_queries, n_keys], (Kind::Bool, scores.device()))?.f_triu(1)?;
        scores = scores.f_masked_fill(&later, f64::NEG_INFINITY)?;
    }
    if let Some(mask) = mask {
        scores = scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
    }
    if let Some(sinks_h) = rule.sinks_h {
        let sinks = sinks_h
            .f_view([1, n_heads, 1, 1])?
            .f_expand([n_batch, n_heads, n_queries, 1], false)?;
        scores = Tensor::f_cat(&[scores, sinks], -1)?;
    }
    let wide = if scores.f_kind()? == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let weights = scores
        .f_softmax(-1, wide)?
        .f_narrow(-1, 0, n_keys)?
        .f_to_kind(value.f_kind()?)?;
    Ok(weights.f_matmul(&value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        head_dim: 8,
        scale: None,
        softcap: None,
        reach: None,
        sinks_h: None,
    };

    /// Queries of six heads, keys and values of two.
    fn tensors(n_tokens: i64) -> [Tensor; 3] {
        [6, 2, 2].map(|n_heads: i64| {
            let n = 2 * n_heads * n_tokens * 8;
            let numbers = Tensor::arange(n, (Kind::Double, Device::Cpu)).view([2, n_heads, -1, 8]);
            numbers.f_mul_scalar(0.7 + n_heads as f64).unwrap().sin()
        })
    }

    /// Value, and gradients by queries, keys and values, of a weighted sum.
    fn all_of(
        tensors: &[Tensor; 3],
        attention: impl Fn(&Tensor, &Keys) -> Result<Tensor>,
    ) -> [Tensor; 4] {
        let [query, key, value] = tensors
            .each_ref()
            .map(|x| x.detach().copy().set_requires_grad(true));
        let keys = Keys {
            key_bgsk: &key,
            value_bgsk: &value,
        };
        let out = attention(&query, &keys).unwrap();
        let weights = out.detach().f_mul_scalar(3.0).unwrap().cos();
        out.f_mul(&weights).unwrap().sum(Kind::Double).backward();
        [out.detach(), query.grad(), key.grad(), value.grad()]
    }

    fn assert_same(one: [Tensor; 4], other: [Tensor; 4]) {
        for (one, other) in one.iter().zip(&other) {
            let error = one.f_sub(other).unwrap().abs().max().double_value(&[]);
            assert!(
                error <= 1e-12 * other.abs().max().double_value(&[]),
                "{error}"
            );
        }
    }

    #[test]
    fn repeated_keys_are_grouped_ones() {
        let tensors = tensors(12);
        let near = Tensor::ones([12, 12], (Kind::Bool, Device::Cpu))
            .tril(0)
            .triu(-3);
        for mask in [None, Some(&near)] {
            let of = |repeats| {
                all_of(&tensors, |query, keys| {
                    fused(RULE, query, keys, (mask, mask.is_none()), repeats)
                })
            };
            assert_same(of(true), of(false));
        }
    }

    /// Value and gradients, of decoders and encoders.
    #[test]
    fn a_window_in_blocks_is_the_one_of_a_dense_mask() {
        for causal in [true, false] {
            for (n_tokens, reach) in [(23, 1), (23, 5), (24, 8), (23, 11)] {
                let context = MixerContext::new(causal, 0, n_tokens, Device::Cpu, Kind::Double);
                let mask = context.window_mask(reach, n_tokens).unwrap();
                let tensors = tensors(n_tokens);
                let in_blocks = all_of(&tensors, |query, keys| {
                    in_blocks(RULE, query, keys, &context, reach)
                });
                let dense = all_of(&tensors, |query, keys| {
                    softmax_of(RULE, query, keys, Some(mask.as_ref()), false)
                });
                assert_same(in_blocks, dense);
            }
        }
    }
}
