//! What least squares needs to know of one projection that writes to the residual stream.

use tch::{Device, Kind, Tensor};

use crate::blueprint::Role;
use crate::error::Result;
use crate::model::{Block, NoTap, Rope, Site, Tap};

/// The two halves of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Attention, up to its output projection.
    Attention,
    /// The MLP, up to its second projection.
    Mlp,
}

impl Part {
    /// The projection that adds this half to the residual stream.
    pub fn writer(self) -> Role {
        match self {
            Part::Attention => Role::AttentionOutput,
            Part::Mlp => Role::Down,
        }
    }

    fn site(self, layer_idx: usize) -> Site {
        match self {
            Part::Attention => Site::AttentionHeads(layer_idx),
            Part::Mlp => Site::MlpNeurons(layer_idx),
        }
    }

    /// The residual stream with this half's output added.
    pub(super) fn sum(self, block: &Block, x_bte: &Tensor, rope: Option<&Rope>, tap: &mut dyn Tap) -> Result<Tensor> {
        match self {
            Part::Attention => block.attention_sum(x_bte, rope, tap, None),
            Part::Mlp => block.mlp_sum(x_bte, tap),
        }
    }

    /// What leaves this half for that sum.
    pub(super) fn settle(self, block: &Block, sum_bte: Tensor) -> Result<Tensor> {
        match self {
            Part::Attention => block.settle_attention(sum_bte),
            Part::Mlp => block.settle_mlp(sum_bte),
        }
    }

    /// Both at once, looking at nothing.
    pub(super) fn forward(self, block: &Block, x_bte: &Tensor, rope: Option<&Rope>) -> Result<Tensor> {
        self.settle(block, self.sum(block, x_bte, rope, &mut NoTap)?)
    }
}

/// Sums over all calibration tokens at one projection: X [N, C] is its input on the student's own stream, R [N, E] what the
/// student's stream lacks after it. Products in the type of the pass, at least f32; sums in f64, on the CPU.
#[derive(Debug)]
pub struct Joint {
    /// Which half of the layer.
    pub part: Part,
    /// The student's layer.
    pub layer_idx: usize,
    /// XᵀX.
    pub xx_cc: Tensor,
    /// RᵀX.
    pub rx_ec: Tensor,
    /// Sum of R over tokens.
    pub r_sum_e: Tensor,
    /// ‖R‖².
    pub r_squared: f64,
    /// N.
    pub n_tokens: usize,
}

impl Joint {
    pub(super) fn new(part: Part, layer_idx: usize, n_inputs: i64, n_hidden: i64) -> Result<Self> {
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Double, Device::Cpu));
        Ok(Joint {
            part,
            layer_idx,
            xx_cc: zeros(&[n_inputs, n_inputs])?,
            rx_ec: zeros(&[n_hidden, n_inputs])?,
            r_sum_e: zeros(&[n_hidden])?,
            r_squared: 0.0,
            n_tokens: 0,
        })
    }

    /// Adds one batch: the student's half of the layer on its stream, against the sum it should have.
    pub(super) fn add(
        &mut self,
        block: &Block,
        x_bte: &Tensor,
        rope: Option<&Rope>,
        wanted_bte: &Tensor,
    ) -> Result<()> {
        let mut input = Input { site: self.part.site(self.layer_idx), x: None };
        let sum_bte = self.part.sum(block, x_bte, rope, &mut input)?;
        let Some(x) = input.x else { return Ok(()) };
        let x_nc = rows(&x)?;
        let r_ne = rows(&wanted_bte.f_to_kind(Kind::Float)?.f_sub(&sum_bte.f_to_kind(Kind::Float)?)?)?;
        self.xx_cc = self.xx_cc.f_add(&exact(&x_nc.f_transpose(0, 1)?.f_matmul(&x_nc)?)?)?;
        self.rx_ec = self.rx_ec.f_add(&exact(&r_ne.f_transpose(0, 1)?.f_matmul(&x_nc)?)?)?;
        self.r_sum_e = self.r_sum_e.f_add(&exact(&r_ne.f_sum_dim_intlist(0i64, false, Kind::Double)?)?)?;
        self.r_squared += r_ne.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        self.n_tokens += r_ne.size2()?.0 as usize;
        Ok(())
    }

    /// ‖R − X·ΔWᵀ‖² once ΔW [E, C] is added to the projection.
    pub fn remaining(&self, delta_ec: &Tensor) -> Result<f64> {
        let total = |x: Tensor| -> Result<f64> { Ok(x.f_sum(Kind::Double)?.f_double_value(&[])?) };
        let cross = total(delta_ec.f_mul(&self.rx_ec)?)?;
        let square = total(delta_ec.f_matmul(&self.xx_cc)?.f_mul(delta_ec)?)?;
        Ok(self.r_squared - 2.0 * cross + square)
    }
}

/// [.., C] to [N, C] in f32.
pub(super) fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or(1);
    Ok(x.f_reshape([-1, width])?.f_to_kind(Kind::Float)?)
}

/// In f64 on the CPU, where sums are kept.
pub(super) fn exact(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
}

/// Remembers what one site shows.
struct Input {
    site: Site,
    x: Option<Tensor>,
}

impl Tap for Input {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn see(&mut self, _site: Site, x: &Tensor) -> Result<()> {
        self.x = Some(x.shallow_clone());
        Ok(())
    }
}
