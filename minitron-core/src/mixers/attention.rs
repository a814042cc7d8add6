//! Multi-head attention with grouped key/value heads.

use tch::{Kind, Tensor};

use super::attend::{Keys, Rule, attend};
use super::layout::{Layout, QkNorm};
use super::pairs::shares_of_pairs;
use super::{Mixer, Observed, Rescale, RunMixer};
use crate::error::Result;
use crate::nn::{Linear, MixerContext, MixerState, NormLayer, PartWeights, PortTap};
use crate::parts::{
    Cost, HEADS, KV_HEADS, Norm, ParamKind, Port, Ports, ROPE_PAIRS, Role, Rotary, RotaryScaling,
};

/// softmax(cap(s · q·kᵀ) + mask) · v for each head, then the output projection; all that families
/// do differently is data.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Channels of a head.
    pub head_dim: usize,
    /// Pairs of them that turn together, where some may go.
    pub rope_pairs: Option<usize>,
    /// How the three projections are stored.
    pub layout: Layout,
    /// Norms of queries and keys, before they turn.
    pub qk_norm: Option<(QkNorm, Norm)>,
    /// The rotation of queries and keys; none where positions enter otherwise, or not at all.
    pub rotary: Option<Rotary>,
    /// Tokens back that a query sees (and, in an encoder, ahead), its own not counted; none: all.
    pub reach: Option<usize>,
    /// s; 1 / sqrt(`head_dim`) where it is not given.
    pub scale: Option<f64>,
    /// cap(x) = c · tanh(x / c).
    pub softcap: Option<f64>,
    /// Whether each query head has a logit of its own that joins its softmax and gives nothing
    /// (gpt-oss).
    pub sinks: bool,
    /// (β, P): queries at position t grow by 1 + β · ln(1 + ⌊t / P⌋), after they turned (Llama 4's
    /// temperature).
    pub growth: Option<(f64, f64)>,
}

/// One logit for each query head, \[H\].
pub const SINKS: Role = Role("sinks");

impl Attention {
    /// Plain attention with heads of this width.
    pub fn new(head_dim: usize) -> Self {
        Attention {
            head_dim,
            rope_pairs: None,
            layout: Layout::Split,
            qk_norm: None,
            rotary: None,
            reach: None,
            scale: None,
            softcap: None,
            sinks: false,
            growth: None,
        }
    }

    /// Channels of a head with so many pairs.
    fn head_dim_of(&self, pairs: usize) -> usize {
        self.rope_pairs.map_or(self.head_dim, |all| {
            self.head_dim.saturating_sub(2 * all) + 2 * pairs
        })
    }
}

impl Mixer for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn ports(&self) -> Ports {
        let readers = match self.layout {
            Layout::Split => vec![Role::QUERY, Role::KEY, Role::VALUE],
            Layout::Fused | Layout::FusedByHead => vec![Role::QUERY_KEY_VALUE],
        };
        Ports::new(readers, Role::ATTENTION_OUTPUT, Port::HEADS)
    }

    fn observed(&self) -> Vec<Observed> {
        let heads = [HEADS, KV_HEADS].map(|kind| Observed {
            kind,
            port: Port::HEADS,
            width: self.head_dim,
        });
        let pairs = self.rope_pairs.map(|_| Observed {
            kind: ROPE_PAIRS,
            port: Port::ROPE_PAIRS,
            width: 1,
        });
        heads.into_iter().chain(pairs).collect()
    }

    fn shows(&self) -> Vec<Port> {
        let pairs = self.rope_pairs.map(|_| Port::ROPE_PAIRS);
        [Port::QUERY, Port::KEY, Port::VALUE, Port::HEADS]
            .into_iter()
            .chain(pairs)
            .collect()
    }

    fn norms(&self) -> Vec<(Role, Norm)> {
        self.qk_norm
            .iter()
            .flat_map(|&(_, norm)| [(Role::QUERY_NORM, norm), (Role::KEY_NORM, norm)])
            .collect()
    }

    fn norms_over_units(&self) -> Vec<(Role, Port)> {
        match self.qk_norm {
            Some((over, _)) if over == QkNorm::Projection || self.rope_pairs.is_some() => {
                vec![(Role::QUERY_NORM, Port::QUERY), (Role::KEY_NORM, Port::KEY)]
            }
            _ => Vec::new(),
        }
    }

    /// Queries, keys, values, the context and its copy, keys and values repeated for their query
    /// heads.
    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        let n_heads = size(HEADS);
        let n_kv_heads = if size(KV_HEADS) == 0 {
            n_heads
        } else {
            size(KV_HEADS)
        };
        let head_dim = self.head_dim_of(size(ROPE_PAIRS));
        let n_normed = if self.qk_norm.is_some() { 2 } else { 0 };
        Cost {
            cache_per_token: (2 * head_dim).saturating_mul(n_kv_heads) as u64,
            cached_tokens: self.reach.map(|reach| reach + 1),
            inside: ((5 + n_normed) * head_dim).saturating_mul(n_heads) as u64,
            ..Cost::default()
        }
    }

    fn states_hold_for(&self) -> Option<usize> {
        match &self.rotary.as_ref()?.scaling {
            RotaryScaling::Long {
                short,
                long,
                original_max_positions,
            } if short != long => Some(*original_max_positions as usize),
            _ => None,
        }
    }

    /// With d channels of a head of which d' stay, scores are divided by another root where the
    /// family takes 1 / sqrt(d), and x / rms(x) of queries and keys shrinks by sqrt(d' / d) where
    /// what goes is zero.
    fn rescales(&self, kind: &str, kept: usize) -> Vec<Rescale> {
        if kind != ROPE_PAIRS {
            return Vec::new();
        }
        let wider = (self.head_dim as f64 / self.head_dim_of(kept).max(1) as f64).sqrt();
        let queries = if self.qk_norm.is_some() {
            Role::QUERY_NORM
        } else {
            Role::QUERY
        };
        let by_scale = Rescale {
            role: queries,
            factor: 1.0 / wider,
            assumes_zeros: false,
        };
        let mut rescales = Vec::new();
        rescales.extend(self.scale.is_none().then_some(by_scale));
        for (role, _) in self.norms() {
            rescales.push(Rescale {
                role,
                factor: wider,
                assumes_zeros: true,
            });
        }
        rescales
    }

    fn obstacle(&self) -> Option<String> {
        match &self.rotary.as_ref()?.scaling {
            RotaryScaling::Unsupported { why } => Some(why.clone()),
            _ => None,
        }
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        let n_heads = weights.size(HEADS)? as i64;
        let inputs = match self.layout {
            Layout::Split => Projected::Split {
                query: weights.linear(Role::QUERY)?,
                key: weights.linear(Role::KEY)?,
                value: weights.linear(Role::VALUE)?,
            },
            Layout::Fused | Layout::FusedByHead => {
                Projected::Fused(weights.linear(Role::QUERY_KEY_VALUE)?)
            }
        };
        let norms = match self.qk_norm {
            Some((_, norm)) => Some((
                weights.norm(Role::QUERY_NORM, norm)?,
                weights.norm(Role::KEY_NORM, norm)?,
            )),
            None => None,
        };
        Ok(Box::new(RunAttention {
            of: self.clone(),
            inputs,
            norms,
            output: weights.linear(Role::ATTENTION_OUTPUT)?,
            sinks_h: if self.sinks {
                Some(weights.tensor(SINKS, ParamKind::Weight)?)
            } else {
                None
            },
            n_heads,
            n_kv_heads: weights.size_opt(KV_HEADS).map_or(n_heads, |n| n as i64),
        }))
    }
}

#[derive(Debug)]
struct RunAttention {
    of: Attention,
    inputs: Projected,
    norms: Option<(NormLayer, NormLayer)>,
    output: Linear,
    sinks_h: Option<Tensor>,
    n_heads: i64,
    n_kv_heads: i64,
}

#[derive(Debug)]
enum Projected {
    Split {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    Fused(Linear),
}

impl RunMixer for RunAttention {
    fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        state: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        let (n_batch, n_tokens, _) = x_bte.size3()?;
        let (query, key, value) = self.project(x_bte, n_batch, n_tokens)?;
        for (port, heads) in [
            (Port::QUERY, &query),
            (Port::KEY, &key),
            (Port::VALUE, &value),
        ] {
            if tap.wants(port) {
                tap.show(port, &heads.f_reshape([n_batch, n_tokens, -1])?)?;
            }
        }
        if let Some(pairs) = self.of.rope_pairs.filter(|_| tap.wants(Port::ROPE_PAIRS)) {
            tap.show(
                Port::ROPE_PAIRS,
                &shares_of_pairs([&query, &key, &value], pairs as i64)?,
            )?;
        }
        let (query, key) = self.turned(query, key, context)?;
        let query_bhtk = query.f_transpose(1, 2)?;
        let (mut key_bgsk, mut value_bgsk) = (key.f_transpose(1, 2)?, value.f_transpose(1, 2)?);
        if let Some(state) = state {
            let seen = state.extended(&[&key_bgsk, &value_bgsk], 2, self.of.reach)?;
            if let [keys, values] = seen.as_slice() {
                (key_bgsk, value_bgsk) = (keys.shallow_clone(), values.shallow_clone());
            }
        }
        let keys = Keys {
            key_bgsk: &key_bgsk,
            value_bgsk: &value_bgsk,
        };
        let Attention {
            head_dim,
            scale,
            softcap,
            reach,
            ..
        } = self.of;
        let rule = Rule {
            head_dim,
            scale,
            softcap,
            reach,
            sinks_h: self.sinks_h.as_ref(),
        };
        let context_bhtk = attend(rule, &query_bhtk, &keys, context)?;
        let context_btc = context_bhtk.f_transpose(1, 2)?.f_reshape([
            n_batch,
            n_tokens,
            self.n_heads * self.of.head_dim as i64,
        ])?;
        tap.show(Port::HEADS, &context_btc)?;
        self.output.forward(&context_btc)
    }
}

impl RunAttention {
    /// Queries [B, T, H, K], keys and values [B, T, G, K], normed where the family does.
    fn project(
        &self,
        x_bte: &Tensor,
        n_batch: i64,
        n_tokens: i64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let head_dim = self.of.head_dim as i64;
        let (query, key, value) = match &self.inputs {
            Projected::Split { query, key, value } => {
                let (mut q, mut k) = (query.forward(x_bte)?, key.forward(x_bte)?);
                if let (Some((query_norm, key_norm)), Some((QkNorm::Projection, _))) =
                    (&self.norms, self.of.qk_norm)
                {
                    (q, k) = (query_norm.forward(&q)?, key_norm.forward(&k)?);
                }
                let v = value.forward(x_bte)?;
                (
                    q.f_view([n_batch, n_tokens, self.n_heads, head_dim])?,
                    k.f_view([n_batch, n_tokens, self.n_kv_heads, head_dim])?,
                    v.f_view([n_batch, n_tokens, self.n_kv_heads, head_dim])?,
                )
            }
            Projected::Fused(fused) if self.of.layout == Layout::FusedByHead => {
                let all =
                    fused
                        .forward(x_bte)?
                        .f_view([n_batch, n_tokens, self.n_heads, 3, head_dim])?;
                (
                    all.f_select(3, 0)?,
                    all.f_select(3, 1)?,
                    all.f_select(3, 2)?,
                )
            }
            Projected::Fused(fused) => {
                let n_all = self.n_heads + 2 * self.n_kv_heads;
                let all = fused
                    .forward(x_bte)?
                    .f_view([n_batch, n_tokens, n_all, head_dim])?;
                (
                    all.f_narrow(2, 0, self.n_heads)?,
                    all.f_narrow(2, self.n_heads, self.n_kv_heads)?,
                    all.f_narrow(2, self.n_heads + self.n_kv_heads, self.n_kv_heads)?,
                )
            }
        };
        match (&self.norms, self.of.qk_norm) {
            (Some((query_norm, key_norm)), Some((QkNorm::Head, _))) => {
                Ok((query_norm.forward(&query)?, key_norm.forward(&key)?, value))
            }
            _ => Ok((query, key, value)),
        }
    }

    /// Queries and keys at their positions.
    fn turned(
        &self,
        query: Tensor,
        key: Tensor,
        context: &MixerContext,
    ) -> Result<(Tensor, Tensor)> {
        let (mut query, mut key) = (query, key);
        if let Some(rotary) = &self.of.rotary {
            let rope = context.rope(rotary)?;
            (query, key) = (rope.apply(&query)?, rope.apply(&key)?);
        }
        if let Some((beta, period)) = self.of.growth {
            let periods = context
                .positions()?
                .f_to_kind(Kind::Double)?
                .f_div_scalar(period)?
                .f_floor()?;
            let growth = periods
                .f_log1p()?
                .f_mul_scalar(beta)?
                .f_add_scalar(1.0)?
                .f_to_kind(query.f_kind()?)?;
            query = query.f_mul(&growth.f_unsqueeze(-1)?.f_unsqueeze(-1)?)?;
        }
        Ok((query, key))
    }
}
