//! Experts, of which a token goes through a few.

use tch::{Kind, Tensor};

use super::lots::Lots;
use super::mlp::Mlp;
use super::router::{ROUTER, Routed, Router, RunRouter};
use super::stacked::{Clamped, EXPERTS_DOWN, EXPERTS_GATE_UP, RunStacked};
use super::{Gate, Mixer, Observed, RunMixer};
use crate::error::{Error, Result};
use crate::nn::{Linear, MixerContext, MixerState, NoTap, PartWeights, PortTap};
use crate::parts::{Active, At, Cost, EXPERT_MLP, EXPERTS, Port, Ports, Role, SHARED_MLP, Writer};

/// The weight of each expert for each token, [B, T, X], 0 where it does not go through it.
pub const EXPERT_GATES: Port = Port("expert_gates");
/// What each expert adds to each token, weight times L2 norm of its output, [B, T, X].
pub const EXPERT_OUTPUTS: Port = Port("expert_outputs");
/// Sum over all tokens of what each expert would give them, wherever they go, [X, E] in f64.
pub const EXPERT_SUMS: Port = Port("expert_sums");
/// The same over the tokens that go through it, [X, E] in f64.
pub const EXPERT_ROUTED_SUMS: Port = Port("expert_routed_sums");
/// Inputs of the shared expert's second projection behind its own gate, [B, T, F].
pub const SHARED: Port = Port("shared");
/// Inputs of an expert's second projection times its weight, [B, T, F].
pub const WEIGHED: Port = Port("weighed");
/// A logit for the shared expert as a whole, [1 | E].
pub const SHARED_GATE: Role = Role("shared gate");

/// Σ over a token's experts of weight · expert(x), and what a shared expert adds:
///
/// ```text
/// y = Σ_r w_r · E_r(x) + σ(s·x) · S(x)          w, r by the router, s where it is gated
/// ```
/// Tokens are sorted by expert; each expert that has any is one product. Balancing losses are no
/// part of it: a student follows its teacher's choices.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Who goes where.
    pub router: Router,
    /// What each expert computes.
    pub expert: Mlp,
    /// How experts are stored.
    pub storage: Storage,
    /// The expert of all tokens.
    pub shared: Option<Shared>,
}

/// How the weights of experts lie in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Storage {
    /// Each expert's matrices by themselves.
    OneByOne,
    /// All of them in one tensor, transposed, gate and up interleaved (gpt-oss).
    Stacked(Clamped),
}

/// The expert of all tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    /// What it computes.
    pub mlp: Mlp,
    /// Whether a sigmoid of its own logit is its weight.
    pub gated: bool,
}

impl Mixer for Moe {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn ports(&self) -> Ports {
        let of_expert = match self.storage {
            Storage::OneByOne => self.expert.ports().readers,
            Storage::Stacked(_) => vec![EXPERTS_GATE_UP],
        };
        let mut readers = vec![ROUTER];
        readers.extend(of_expert);
        let mut ports = Ports {
            readers,
            writer: None,
            of_units: Some(Writer {
                role: match self.storage {
                    Storage::OneByOne => Role::DOWN,
                    Storage::Stacked(_) => EXPERTS_DOWN,
                },
                reads: WEIGHED,
            }),
        };
        if let Some(shared) = &self.shared {
            let missing = shared.mlp.ports().readers.into_iter();
            let missing: Vec<Role> = missing
                .filter(|role| !ports.readers.contains(role))
                .collect();
            ports.readers.extend(missing);
            ports.readers.extend(shared.gated.then_some(SHARED_GATE));
            ports.writer = Ports::new(Vec::new(), Role::DOWN, SHARED).writer;
        }
        ports
    }

    fn observed(&self) -> Vec<Observed> {
        let seen = |kind, port| Observed {
            kind,
            port,
            width: 1,
        };
        vec![
            seen(EXPERTS, EXPERT_OUTPUTS),
            seen(EXPERT_MLP, Port::NEURONS),
            seen(SHARED_MLP, Port::NEURONS),
        ]
    }

    fn shows(&self) -> Vec<Port> {
        let mut ports = vec![
            EXPERT_GATES,
            EXPERT_OUTPUTS,
            EXPERT_SUMS,
            EXPERT_ROUTED_SUMS,
        ];
        if let Some(shared) = &self.shared {
            ports.extend(shared.mlp.shows());
            ports.push(SHARED);
        }
        ports
    }

    /// Scores, and of each of a token's experts its input, projections and products.
    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        let of_mlp = |mlp: &Mlp, kind: &str| match mlp.gate {
            Gate::None => size(kind).saturating_mul(2),
            _ => size(kind).saturating_mul(4),
        };
        let hidden = size(crate::parts::HIDDEN);
        let of_expert = of_mlp(&self.expert, EXPERT_MLP).saturating_add(hidden.saturating_mul(2));
        let of_shared = self
            .shared
            .as_ref()
            .map_or(0, |shared| of_mlp(&shared.mlp, SHARED_MLP));
        let routed = of_expert.saturating_mul(self.router.top_k);
        let scores = size(EXPERTS).saturating_mul(2);
        Cost {
            inside: routed.saturating_add(of_shared).saturating_add(scores) as u64,
            ..Cost::default()
        }
    }

    fn active(&self) -> Option<Active> {
        let stacked = match self.storage {
            Storage::OneByOne => Vec::new(),
            Storage::Stacked(_) => vec![EXPERTS_GATE_UP, EXPERTS_DOWN],
        };
        Some(Active {
            kind: EXPERTS,
            n: self.router.top_k,
            stacked,
        })
    }

    fn obstacle(&self) -> Option<String> {
        self.expert.obstacle()
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        let n_experts = weights.size(EXPERTS)?;
        if n_experts < self.router.top_k {
            return Err(Error::Internal(format!(
                "{n_experts} experts of which each token takes {}",
                self.router.top_k
            )));
        }
        let experts = match self.storage {
            Storage::OneByOne => {
                let mut experts = Vec::with_capacity(n_experts);
                for expert in 0..n_experts {
                    experts.push(self.expert.load(&mut weights.unit(expert))?);
                }
                RunExperts::OneByOne(experts)
            }
            Storage::Stacked(clamped) => RunExperts::Stacked(RunStacked::load(clamped, weights)?),
        };
        let shared = match &self.shared {
            Some(shared) => Some(RunShared {
                mlp: shared.mlp.load(weights)?,
                gate: match shared.gated {
                    true => Some(weights.linear(SHARED_GATE)?),
                    false => None,
                },
            }),
            None => None,
        };
        Ok(Box::new(RunMoe {
            router: self.router.load(weights)?,
            experts,
            n_experts: n_experts as i64,
            of_expert: self.expert.shows(),
            shared,
        }))
    }
}

#[derive(Debug)]
struct RunMoe {
    router: RunRouter,
    experts: RunExperts,
    n_experts: i64,
    /// Ports of each expert.
    of_expert: Vec<Port>,
    shared: Option<RunShared>,
}

#[derive(Debug)]
enum RunExperts {
    OneByOne(Vec<Box<dyn RunMixer>>),
    Stacked(RunStacked),
}

#[derive(Debug)]
struct RunShared {
    mlp: Box<dyn RunMixer>,
    gate: Option<Linear>,
}

impl RunMixer for RunMoe {
    fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        _: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        let (n_batch, n_tokens, n_channels) = x_bte.size3()?;
        let x_ne = x_bte.f_reshape([-1, n_channels])?;
        let routed = self.router.route(&x_ne)?;
        if tap.wants(EXPERT_GATES) {
            let gates_nx = self.spread(&routed, &routed.weight_nr)?;
            tap.show(EXPERT_GATES, &gates_nx.f_view([n_batch, n_tokens, -1])?)?;
        }
        if tap.wants(EXPERT_SUMS) {
            tap.show(EXPERT_SUMS, &self.sums(&x_ne, None, context)?)?;
        }
        if tap.wants(EXPERT_ROUTED_SUMS) {
            let sums_xe = self.sums(&x_ne, Some(&routed), context)?;
            tap.show(EXPERT_ROUTED_SUMS, &sums_xe)?;
        }
        let y_ne = self.routed(&x_ne, &routed, (n_batch, n_tokens), context, tap)?;
        let y_bte = y_ne.f_view([n_batch, n_tokens, n_channels])?;
        match &self.shared {
            Some(shared) => Ok(y_bte.f_add(&shared.forward(x_bte, context, tap)?)?),
            None => Ok(y_bte),
        }
    }
}

impl RunMoe {
    /// What the experts of all tokens give, [N, E].
    fn routed(
        &self,
        x_ne: &Tensor,
        routed: &Routed,
        batch: (i64, i64),
        context: &MixerContext,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        let lots = Lots::new(routed, self.n_experts)?;
        let weights = routed.weight_nr.f_reshape([-1, 1])?;
        let mut y_ne = x_ne.f_zeros_like()?.f_detach()?;
        let shows_outputs = tap.wants(EXPERT_OUTPUTS);
        let mut norms = x_ne.f_new_zeros([weights.size2()?.0], (Kind::Float, x_ne.device()))?;
        for (expert, lot) in lots.by_expert()? {
            let tokens_n = lot.f_div_scalar_mode(lots.per_token, "floor")?;
            let mut of_expert = tap.unit(expert, &tokens_n, batch);
            // One without tokens runs on none where somebody looks: it is zero everywhere.
            let is_seen = of_expert.wants(WEIGHED)
                || self.of_expert.iter().any(|&port| of_expert.wants(port));
            if tokens_n.numel() == 0 && !is_seen {
                continue;
            }
            let mine_ne = x_ne.f_index_select(0, &tokens_n)?;
            let weight_n1 = weights.f_index_select(0, &lot)?;
            let mut of_expert = of_expert.echoed((Port::NEURONS, WEIGHED), Some(&weight_n1));
            let output_ne = self.output(expert, &mine_ne, context, &mut of_expert)?;
            let weighed_ne = output_ne.f_mul(&weight_n1)?;
            if shows_outputs {
                let size = weighed_ne.f_to_kind(Kind::Float)?.f_square()?;
                let size = size
                    .f_sum_dim_intlist([1i64].as_slice(), false, None)?
                    .f_sqrt()?;
                let _ = norms.f_index_copy_(0, &lot, &size.f_detach()?)?;
            }
            let _ = y_ne.f_index_add_(0, &tokens_n, &weighed_ne)?;
        }
        if shows_outputs {
            let norms_nr = norms.f_view_as(&routed.expert_nr)?;
            let norms_nx = self.spread(routed, &norms_nr)?;
            tap.show(EXPERT_OUTPUTS, &norms_nx.f_view([batch.0, batch.1, -1])?)?;
        }
        Ok(y_ne)
    }

    /// What one expert makes of its tokens, from [N, E] to [N, E].
    fn output(
        &self,
        expert: usize,
        x_ne: &Tensor,
        context: &MixerContext,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        match &self.experts {
            RunExperts::OneByOne(experts) => {
                let expert = experts.get(expert).ok_or_else(|| no_expert(expert))?;
                let output = expert.forward(&x_ne.f_unsqueeze(0)?, context, None, tap)?;
                Ok(output.f_squeeze_dim(0)?)
            }
            RunExperts::Stacked(experts) => experts.forward(expert as i64, x_ne, tap),
        }
    }

    /// Of what each expert makes of all tokens, or of those that go through it.
    fn sums(
        &self,
        x_ne: &Tensor,
        routed: Option<&Routed>,
        context: &MixerContext,
    ) -> Result<Tensor> {
        let mut lots = Vec::new();
        if let Some(routed) = routed {
            let of_routed = Lots::new(routed, self.n_experts)?;
            for (_, lot) in of_routed.by_expert()? {
                lots.push(lot.f_div_scalar_mode(of_routed.per_token, "floor")?);
            }
        }
        let (mut nobody, mut sums) = (NoTap, Vec::new());
        for expert in 0..self.n_experts as usize {
            let mut tap = PortTap::new(At::Model, &mut nobody);
            let mine_ne = match lots.get(expert) {
                None => x_ne.shallow_clone(),
                Some(tokens_n) => x_ne.f_index_select(0, tokens_n)?,
            };
            let output_ne = self.output(expert, &mine_ne, context, &mut tap)?;
            sums.push(output_ne.f_sum_dim_intlist(0i64, false, Kind::Double)?);
        }
        Ok(Tensor::f_stack(&sums, 0)?)
    }

    /// Numbers of a token's experts among those of all, [N, X].
    fn spread(&self, routed: &Routed, of_nr: &Tensor) -> Result<Tensor> {
        let (n_tokens, _) = of_nr.size2()?;
        let options = (of_nr.f_kind()?, of_nr.device());
        let all = of_nr.f_new_zeros([n_tokens, self.n_experts], options)?;
        Ok(all.f_scatter(1, &routed.expert_nr, of_nr)?)
    }
}

impl RunShared {
    fn forward(&self, x_bte: &Tensor, context: &MixerContext, tap: &mut PortTap) -> Result<Tensor> {
        let gate_bt1 = match &self.gate {
            Some(gate) => Some(gate.forward(x_bte)?.f_sigmoid()?),
            None => None,
        };
        let mut tap = tap.echoed((Port::NEURONS, SHARED), gate_bt1.as_ref());
        let y_bte = self.mlp.forward(x_bte, context, None, &mut tap)?;
        match gate_bt1 {
            Some(gate_bt1) => Ok(y_bte.f_mul(&gate_bt1)?),
            None => Ok(y_bte),
        }
    }
}

fn no_expert(expert: usize) -> Error {
    Error::Internal(format!(
        "a router chose expert {expert}, which is not there"
    ))
}
