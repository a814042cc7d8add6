//! Mamba 2: a state for each head that decays by a number of its own at each token.

use tch::{Kind, Tensor};

use super::convolution::{Convolution, wide};
use super::scan::Scan;
use super::{Mixer, Observed, RunMixer};
use crate::error::Result;
use crate::nn::{Linear, MixerContext, MixerState, PartWeights, PortTap, activate};
use crate::parts::{Activation, Cost, Norm, NormKind, ParamKind, Port, Ports, Role};

/// Kind of the heads of a Mamba layer; equally many for each of its groups.
pub const MAMBA_HEADS: &str = "mamba_heads";
/// Kind of the channels of a Mamba head, the same in all heads of a layer.
pub const MAMBA_HEAD_DIM: &str = "mamba_head_dim";
/// Kind of the groups of heads that share what they write to their states and read from them.
pub const MAMBA_GROUPS: &str = "mamba_groups";

/// Rows in order: gates and inputs of all heads, what is written to states and read from them by
/// group, a step for each head.
pub const MAMBA_INPUT: Role = Role("mamba input");
/// Convolution over the tokens before, [channels | 1 | taps]: of inputs, writes and reads.
pub const MAMBA_CONVOLUTION: Role = Role("mamba convolution");
/// ln(−a), one for each head.
pub const MAMBA_DECAY: Role = Role("mamba decay");
/// Added to each head's step.
pub const MAMBA_STEP: Role = Role("mamba step");
/// What of its input each head passes on as it is.
pub const MAMBA_SKIP: Role = Role("mamba skip");
/// Norm on what heads give, after their gates, over each group.
pub const MAMBA_NORM: Role = Role("mamba norm");
/// The projection that writes to the stream.
pub const MAMBA_OUTPUT: Role = Role("mamba output");

/// Input of a Mamba mixer's output projection, heads in order, [B, T, H·P].
pub const MAMBA_MIXED: Port = Port("mamba_mixed");
/// Root of the mean square over all heads of each of their channels there, [B, T, P].
pub const MAMBA_CHANNELS: Port = Port("mamba_channels");

/// Steps that untrained heads take, and how fast their states decay (arXiv 2405.21060).
const FRESH_STEPS: (f64, f64) = (1e-3, 1e-1);
const FRESH_DECAYS: (f64, f64) = (1.0, 16.0);

/// Gate, convolution, recurrence, norm and projection, as Mamba 2 has them: with s the step and b
/// and c of the group, h_t = exp(a·s_t)·h_t−1 + s_t·b_t ⊗ x_t, and a head gives c_t·h_t + d·x_t.
#[derive(Debug, Clone, PartialEq)]
pub struct Mamba2 {
    /// Channels of a head.
    pub head_dim: usize,
    /// Numbers of a state for each channel.
    pub state_size: usize,
    /// Tokens that the convolution sees, its own counted.
    pub taps: usize,
    /// Tokens of a chunk: how it is computed, not what.
    pub chunk: usize,
    /// Bounds of a step.
    pub steps: (f64, f64),
    /// Added to the variance in the norm.
    pub eps: f64,
    /// On what the convolution gives.
    pub activation: Activation,
}

/// Sizes that mixers of one layer share.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    n_heads: i64,
    n_groups: i64,
    head_dim: i64,
    state_size: i64,
}

impl Sizes {
    /// Channels of all heads.
    fn inner(self) -> i64 {
        self.n_heads * self.head_dim
    }

    /// Numbers of all groups that are written to states, or read.
    fn states(self) -> i64 {
        self.n_groups * self.state_size
    }

    /// Channels of the convolution.
    fn convolved(self) -> i64 {
        self.inner() + 2 * self.states()
    }
}

impl Mamba2 {
    /// Tokens of a chunk, at most so many: as few as hold no more for pairs of them than for
    /// states.
    pub fn chunk(most: usize, head_dim: usize, state_size: usize) -> usize {
        let even = head_dim.saturating_mul(state_size).isqrt();
        even.next_power_of_two().min(most)
    }

    fn norm(&self) -> Norm {
        Norm {
            kind: NormKind::Rms,
            eps: self.eps,
        }
    }
}

impl Mixer for Mamba2 {
    fn name(&self) -> &'static str {
        "mamba"
    }

    fn ports(&self) -> Ports {
        Ports::new(vec![MAMBA_INPUT], MAMBA_OUTPUT, MAMBA_MIXED)
    }

    fn observed(&self) -> Vec<Observed> {
        let of_heads = Observed {
            kind: MAMBA_HEADS,
            port: MAMBA_MIXED,
            width: self.head_dim,
        };
        let of_channels = Observed {
            kind: MAMBA_HEAD_DIM,
            port: MAMBA_CHANNELS,
            width: 1,
        };
        vec![of_heads, of_channels]
    }

    fn shows(&self) -> Vec<Port> {
        vec![MAMBA_MIXED, MAMBA_CHANNELS]
    }

    fn norms(&self) -> Vec<(Role, Norm)> {
        vec![(MAMBA_NORM, self.norm())]
    }

    fn norms_over_units(&self) -> Vec<(Role, Port)> {
        vec![(MAMBA_NORM, MAMBA_MIXED)]
    }

    /// Projections, what is convolved, decays between the tokens of a chunk, and the norm's inputs
    /// and outputs, which are f32 like the scan itself.
    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        let n_heads = size(MAMBA_HEADS) as u64;
        let inner = n_heads.saturating_mul(size(MAMBA_HEAD_DIM) as u64);
        let (state_size, chunk) = (self.state_size as u64, self.chunk.max(1) as u64);
        let states = (size(MAMBA_GROUPS) as u64).saturating_mul(state_size);
        let convolved = inner.saturating_add(states.saturating_mul(2));
        let held = inner.saturating_mul(state_size);
        let before = (self.taps as u64).saturating_sub(1);
        let by_token = [
            inner.saturating_mul(11),
            convolved.saturating_mul(4),
            n_heads.saturating_mul(chunk).saturating_mul(3),
            held.saturating_mul(4) / chunk,
        ];
        Cost {
            // Two halves of what is f32.
            state: held
                .saturating_mul(2)
                .saturating_add(convolved.saturating_mul(before)),
            inside: by_token.into_iter().fold(0, u64::saturating_add),
            ..Cost::default()
        }
    }

    /// As arXiv 2405.21060 starts: steps even in their logarithm, decays even.
    fn fresh(&self, role: Role, draw: f64) -> Option<f64> {
        if role == MAMBA_SKIP {
            return Some(1.0);
        }
        if role == MAMBA_DECAY {
            let (least, most) = FRESH_DECAYS;
            return Some((least + draw * (most - least)).ln());
        }
        if role == MAMBA_STEP {
            let (least, most) = (FRESH_STEPS.0.ln(), FRESH_STEPS.1.ln());
            // The inverse of ln(1 + exp(x)).
            return Some((least + draw * (most - least)).exp().exp_m1().ln());
        }
        let reach = 1.0 / (self.taps.max(1) as f64).sqrt();
        (role == MAMBA_CONVOLUTION).then_some(reach * (2.0 * draw - 1.0))
    }

    fn obstacle(&self) -> Option<String> {
        self.activation.obstacle()
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        let sizes = Sizes {
            n_heads: weights.size(MAMBA_HEADS)? as i64,
            n_groups: weights.size(MAMBA_GROUPS)? as i64,
            head_dim: self.head_dim as i64,
            state_size: self.state_size as i64,
        };
        let gain_c = weights.tensor(MAMBA_NORM, ParamKind::Weight)?;
        Ok(Box::new(RunMamba2 {
            of: self.clone(),
            sizes,
            input: weights.linear(MAMBA_INPUT)?,
            convolution: Convolution {
                weight_c1k: weights.tensor(MAMBA_CONVOLUTION, ParamKind::Weight)?,
                bias_c: weights.tensor_opt(MAMBA_CONVOLUTION, ParamKind::Bias)?,
            },
            decay_h: weights.tensor(MAMBA_DECAY, ParamKind::Weight)?,
            step_h: weights.tensor(MAMBA_STEP, ParamKind::Weight)?,
            skip_h: weights.tensor(MAMBA_SKIP, ParamKind::Weight)?,
            gain_c,
            output: weights.linear(MAMBA_OUTPUT)?,
        }))
    }
}

#[derive(Debug)]
struct RunMamba2 {
    of: Mamba2,
    sizes: Sizes,
    input: Linear,
    convolution: Convolution,
    decay_h: Tensor,
    step_h: Tensor,
    skip_h: Tensor,
    gain_c: Tensor,
    output: Linear,
}

/// What enters the recurrence, of one token after another.
struct Convolved {
    x_btc: Tensor,
    write_btn: Tensor,
    read_btn: Tensor,
}

impl RunMixer for RunMamba2 {
    fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        state: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        let (inner, convolved) = (self.sizes.inner(), self.sizes.convolved());
        let all = self.input.forward(x_bte)?;
        let gate_btc = all.f_narrow(-1, 0, inner)?;
        let step_bth = all.f_narrow(-1, inner + convolved, self.sizes.n_heads)?;
        let documents = context.documents()?;
        let (tail, before) = match state.as_ref().map(|state| state.tensors()) {
            Some([tail, before]) => (Some(tail.shallow_clone()), Some(before.shallow_clone())),
            _ => (None, None),
        };
        let (seen_btc, tail) = self.convolution.forward(
            &all.f_narrow(-1, inner, convolved)?,
            tail.as_ref(),
            documents.as_ref(),
        )?;
        let seen = self.split(&activate(&seen_btc, self.of.activation)?)?;
        let scan = self.scan(&seen, &step_bth, documents, before)?;
        let skipped_btgrp = scan.x_btgrp.f_mul(&self.by_group(&self.skip_h)?)?;
        let (y_btgrp, after) = scan.run(self.of.chunk, state.is_some())?;
        if let (Some(state), Some(after)) = (state, after) {
            state.replace(vec![tail, after]);
        }
        let y_btgrp = y_btgrp.f_add(&skipped_btgrp)?;
        let mixed_btc = self
            .normed(&y_btgrp, &gate_btc)?
            .f_to_kind(x_bte.f_kind()?)?
            .f_mul(&self.gain_c)?;
        self.show(&mixed_btc, tap)?;
        self.output.forward(&mixed_btc)
    }
}

impl RunMamba2 {
    /// The parts of what was convolved.
    fn split(&self, seen_btc: &Tensor) -> Result<Convolved> {
        let (inner, states) = (self.sizes.inner(), self.sizes.states());
        Ok(Convolved {
            x_btc: seen_btc.f_narrow(-1, 0, inner)?,
            write_btn: seen_btc.f_narrow(-1, inner, states)?,
            read_btn: seen_btc.f_narrow(-1, inner + states, states)?,
        })
    }

    /// All of it in f32, or f64 where the model is.
    fn scan(
        &self,
        seen: &Convolved,
        step_bth: &Tensor,
        document_bt: Option<Tensor>,
        state_bgnc: Option<Tensor>,
    ) -> Result<Scan> {
        let Sizes {
            n_heads,
            n_groups,
            head_dim,
            state_size,
        } = self.sizes;
        let (n_batch, n_tokens, _) = step_bth.size3()?;
        let (kind, per_group) = (wide(step_bth)?, n_heads / n_groups.max(1));
        let (least, most) = self.of.steps;
        let step_bth = step_bth
            .f_to_kind(kind)?
            .f_add(&self.step_h.f_to_kind(kind)?)?
            .f_softplus()?;
        let mut step_bth = step_bth.f_clamp_min(least)?;
        if most.is_finite() {
            step_bth = step_bth.f_clamp_max(most)?;
        }
        let decay_h = self.decay_h.f_to_kind(kind)?.f_exp()?.f_neg()?;
        let of_groups = [n_batch, n_tokens, n_groups, state_size];
        let of_heads = [n_batch, n_tokens, n_groups, per_group];
        let of_channels = [n_batch, n_tokens, n_groups, per_group, head_dim];
        Ok(Scan {
            x_btgrp: seen.x_btc.f_to_kind(kind)?.f_reshape(of_channels)?,
            step_btgr: step_bth.f_reshape(of_heads)?,
            decay_gr: decay_h.f_view([n_groups, per_group])?,
            write_btgn: seen.write_btn.f_to_kind(kind)?.f_reshape(of_groups)?,
            read_btgn: seen.read_btn.f_to_kind(kind)?.f_reshape(of_groups)?,
            document_bt,
            state_bgnc,
        })
    }

    /// One number for each head, beside what heads give.
    fn by_group(&self, x_h: &Tensor) -> Result<Tensor> {
        let n_groups = self.sizes.n_groups;
        Ok(x_h.f_to_kind(wide(x_h)?)?.f_view([n_groups, -1, 1])?)
    }

    /// What heads give through their gates, x / rms(x) over each group, [B, T, C].
    fn normed(&self, y_btgrp: &Tensor, gate_btc: &Tensor) -> Result<Tensor> {
        let (n_batch, n_tokens, _) = gate_btc.size3()?;
        let of_groups = [n_batch, n_tokens, self.sizes.n_groups, -1];
        let gate_btc = gate_btc.f_to_kind(y_btgrp.f_kind()?)?.f_silu()?;
        let gated = y_btgrp
            .f_reshape(of_groups)?
            .f_mul(&gate_btc.f_reshape(of_groups)?)?;
        let width = gated.size4()?.3;
        let normed = gated.f_rms_norm([width], None::<Tensor>, self.of.eps)?;
        Ok(normed.f_reshape([n_batch, n_tokens, -1])?)
    }

    fn show(&self, mixed_btc: &Tensor, tap: &mut PortTap) -> Result<()> {
        tap.show(MAMBA_MIXED, mixed_btc)?;
        if !tap.wants(MAMBA_CHANNELS) {
            return Ok(());
        }
        let (n_batch, n_tokens, _) = mixed_btc.size3()?;
        let shape = [n_batch, n_tokens, self.sizes.n_heads, self.sizes.head_dim];
        let square_bthp = mixed_btc
            .f_to_kind(wide(mixed_btc)?)?
            .f_reshape(shape)?
            .f_square()?;
        let mean_btp = square_bthp.f_mean_dim([2i64].as_slice(), false, None::<Kind>)?;
        tap.show(MAMBA_CHANNELS, &mean_btp.f_sqrt()?)
    }
}
