//! What least squares needs to know of projections that write to the residual stream, or read it.

use tch::{Device, Kind, Tensor};

use crate::error::{Present, Result};
use crate::model::{Site, Tap};
use crate::spec::{At, Role};

/// Projections that share their input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionSet {
    /// The part of the student that they belong to; around the layers for an output projection that
    /// reads the last hidden state itself.
    pub at: At,
    /// Their roles; a family has some of them.
    pub roles: Vec<Role>,
    /// Whether they write to the residual stream, rather than read it.
    pub is_writer: bool,
}

/// Sums over all calibration tokens at projections that share an input X [N, C], as the student
/// computes it.
///
/// At a writer, R [N, E] is what the student's stream lacks after it. At readers, it is what X
/// lacks of the teacher's input of the same projections, over all the teacher's channels, dropped
/// ones counting as zero in X. Products in f32; sums in f64, on the CPU.
#[derive(Debug)]
pub struct ProjectionStats {
    /// Which projections.
    pub projections: ProjectionSet,
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
    /// Factor with which the family adds what a writer gives; it is in X already.
    pub scale: f64,
}

impl ProjectionStats {
    pub(super) fn new(projections: ProjectionSet) -> Result<Self> {
        let options = (Kind::Double, Device::Cpu);
        Ok(ProjectionStats {
            projections,
            xx_cc: Tensor::f_zeros([1], options)?,
            rx_ec: Tensor::f_zeros([1], options)?,
            r_sum_e: Tensor::f_zeros([1], options)?,
            r_squared: 0.0,
            n_tokens: 0,
            scale: 1.0,
        })
    }

    /// Adds one batch of X and R.
    pub(super) fn add(&mut self, x: &Tensor, r: &Tensor) -> Result<()> {
        let (x_nc, r_ne) = (rows(x)?, rows(r)?);
        self.xx_cc = self
            .xx_cc
            .f_add(&exact(&x_nc.f_transpose(0, 1)?.f_matmul(&x_nc)?)?)?;
        self.rx_ec = self
            .rx_ec
            .f_add(&exact(&r_ne.f_transpose(0, 1)?.f_matmul(&x_nc)?)?)?;
        self.r_sum_e = self.r_sum_e.f_add(&exact(&r_ne.f_sum_dim_intlist(
            0i64,
            false,
            Kind::Double,
        )?)?)?;
        self.r_squared += r_ne.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        self.n_tokens += r_ne.size2()?.0 as usize;
        Ok(())
    }

    /// ‖R − X·ΔWᵀ‖² once ΔW [E, C] is added to the writer, or R predicted by it at readers.
    pub fn remaining(&self, delta_ec: &Tensor) -> Result<f64> {
        let cross = total(&delta_ec.f_mul(&self.rx_ec)?)?;
        let square = total(&delta_ec.f_matmul(&self.xx_cc)?.f_mul(delta_ec)?)?;
        Ok(self.r_squared - 2.0 * cross + square)
    }
}

fn total(x: &Tensor) -> Result<f64> {
    Ok(x.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// [.., C] to [N, C] in f32.
pub(super) fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x
        .size()
        .last()
        .copied()
        .present("channels of activations")?;
    Ok(x.f_reshape([-1, width])?.f_to_kind(Kind::Float)?)
}

/// In f64 on the CPU, where sums are kept.
pub(super) fn exact(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
}

/// Remembers what one site shows.
pub(super) struct Capture {
    pub site: Site,
    pub x: Option<Tensor>,
}

impl Tap for Capture {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn see(&mut self, _site: Site, x: &Tensor) -> Result<()> {
        self.x = Some(x.shallow_clone());
        Ok(())
    }
}
