//! What least squares needs to know of projections that write to the residual stream, or read it.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Present, Result};
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
    /// Whether they write to the residual stream, rather than read it; false of a norm after a sum.
    pub is_writer: bool,
    /// The teacher's dropped layer that the student's units were taken from, of which these rows
    /// of readers are; none for units of the layer's own.
    pub from: Option<usize>,
}

/// What is known of projections that share an input X [N, C], as the student computes it.
///
/// At a writer, R [N, E] is what the student's stream lacks after it. At readers, it is what X
/// lacks of the teacher's input of the same projections, over all the teacher's channels, dropped
/// ones counting as zero in X. At a norm after a sum, X is the stream behind it, and R what that
/// lacks of the teacher's.
#[derive(Debug)]
pub struct ProjectionStats {
    /// Which projections.
    pub projections: ProjectionSet,
    /// Over all calibration tokens.
    pub all: Moments,
    /// Over every [`HELD_OUT`]th batch, where the text has so many and somebody asked for it.
    pub held_out: Option<Moments>,
    /// Factor with which the family adds what a writer gives; it is in X already.
    pub scale: f64,
    /// Whether products are taken about the means of a batch, which are added in f64: a bias holds
    /// the mean, and what is left is small beside it.
    pub about_means: bool,
}

/// What a reconstruction left of what projections lacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Which projections.
    pub projections: ProjectionSet,
    /// ‖R‖² a token before.
    pub before: f64,
    /// The same after: on tokens that were held out, where some were.
    pub after: f64,
    /// The same of what they were to give, as [`Moments::target_squared`].
    pub target: f64,
    /// At a writer, what the stream lacked before its part; 0 where that is no part of R.
    pub entered: f64,
    /// The ridge that was taken; none where the projections stayed as they are.
    pub ridge: Option<f64>,
}

impl Fit {
    /// What is lacking after, relative to what was to be given; 0 where that is nothing.
    pub fn lacking(&self) -> f64 {
        self.of_target(self.after)
    }

    /// The part of it that came in here, rather than from earlier parts; negative where these are
    /// made up for.
    pub fn error(&self) -> f64 {
        self.of_target(self.after - self.entered)
    }

    fn of_target(&self, x: f64) -> f64 {
        if self.target > 0.0 {
            x / self.target
        } else {
            0.0
        }
    }
}

/// Of so many batches one is held out.
pub const HELD_OUT: usize = 4;

/// Sums over tokens. Products in f32; sums in f64, on the CPU.
#[derive(Debug)]
pub struct Moments {
    /// XᵀX.
    pub xx_cc: Tensor,
    /// RᵀX.
    pub rx_ec: Tensor,
    /// Sum of X over tokens.
    pub x_sum_c: Tensor,
    /// Sum of R over tokens.
    pub r_sum_e: Tensor,
    /// ‖R‖².
    pub r_squared: f64,
    /// ‖·‖² of what R is left of: at a writer, what its part has to add to the student's stream to
    /// make it the teacher's; at readers, the teacher's input.
    pub target_squared: f64,
    /// N.
    pub n_tokens: usize,
}

impl Moments {
    fn zero() -> Result<Self> {
        let options = (Kind::Double, Device::Cpu);
        Ok(Moments {
            xx_cc: Tensor::f_zeros([1], options)?,
            rx_ec: Tensor::f_zeros([1], options)?,
            x_sum_c: Tensor::f_zeros([1], options)?,
            r_sum_e: Tensor::f_zeros([1], options)?,
            r_squared: 0.0,
            target_squared: 0.0,
            n_tokens: 0,
        })
    }

    fn add(&mut self, of_batch: &[Tensor], about_means: bool) -> Result<()> {
        let [xx_cc, rx_ec, x_sum_c, r_sum_e, numbers] = of_batch else {
            return Err(Error::Internal("a batch without its moments".into()));
        };
        if about_means {
            let (x_sum_c, r_sum_e) = (exact(x_sum_c)?, exact(r_sum_e)?);
            let mean_c = x_sum_c.f_div_scalar(numbers.f_double_value(&[1])?.max(1.0))?;
            add_to(&mut self.xx_cc, &x_sum_c.f_outer(&mean_c)?)?;
            add_to(&mut self.rx_ec, &r_sum_e.f_outer(&mean_c)?)?;
        }
        add_to(&mut self.xx_cc, xx_cc)?;
        add_to(&mut self.rx_ec, rx_ec)?;
        add_to(&mut self.x_sum_c, x_sum_c)?;
        add_to(&mut self.r_sum_e, r_sum_e)?;
        self.r_squared += numbers.f_double_value(&[0])?;
        self.n_tokens += numbers.f_double_value(&[1])? as usize;
        self.target_squared += numbers.f_double_value(&[2])?;
        Ok(())
    }

    /// ‖R − X·ΔWᵀ − 1·Δbᵀ‖² once ΔW [E, C] and Δb, where there is one, are added to the writer,
    /// or R predicted by them at readers.
    pub fn remaining(&self, delta_ec: &Tensor, shift_e: Option<&Tensor>) -> Result<f64> {
        let cross = total(&delta_ec.f_mul(&self.rx_ec)?)?;
        let square = total(&delta_ec.f_matmul(&self.xx_cc)?.f_mul(delta_ec)?)?;
        let remaining = self.r_squared - 2.0 * cross + square;
        let Some(shift_e) = shift_e else {
            return Ok(remaining);
        };
        let cross = total(&shift_e.f_mul(&self.shift(delta_ec)?)?)?;
        let square = total(&shift_e.f_square()?)?;
        Ok(remaining + self.n_tokens as f64 * (square - 2.0 * cross))
    }

    /// What is left to say of R where ΔW [E, C] says its part, on average: the Δb that is best
    /// beside it.
    pub fn shift(&self, delta_ec: &Tensor) -> Result<Tensor> {
        let unexplained_e = self.r_sum_e.f_sub(&delta_ec.f_matmul(&self.x_sum_c)?)?;
        Ok(unexplained_e.f_div_scalar(self.n_tokens.max(1) as f64)?)
    }

    /// Sums over X and R less their means.
    pub fn centred(&self) -> Result<Self> {
        let n_tokens = self.n_tokens.max(1) as f64;
        let mean_c = self.x_sum_c.f_div_scalar(n_tokens)?;
        Ok(Moments {
            xx_cc: self.xx_cc.f_sub(&self.x_sum_c.f_outer(&mean_c)?)?,
            rx_ec: self.rx_ec.f_sub(&self.r_sum_e.f_outer(&mean_c)?)?,
            x_sum_c: self.x_sum_c.f_zeros_like()?,
            r_sum_e: self.r_sum_e.f_zeros_like()?,
            r_squared: self.r_squared - total(&self.r_sum_e.f_square()?)? / n_tokens,
            ..*self
        })
    }

    /// Without some of the tokens.
    pub fn without(&self, some: &Moments) -> Result<Self> {
        Ok(Moments {
            xx_cc: self.xx_cc.f_sub(&some.xx_cc)?,
            rx_ec: self.rx_ec.f_sub(&some.rx_ec)?,
            x_sum_c: self.x_sum_c.f_sub(&some.x_sum_c)?,
            r_sum_e: self.r_sum_e.f_sub(&some.r_sum_e)?,
            r_squared: self.r_squared - some.r_squared,
            target_squared: self.target_squared - some.target_squared,
            n_tokens: self.n_tokens.saturating_sub(some.n_tokens),
        })
    }
}

impl ProjectionStats {
    pub(super) fn new(projections: ProjectionSet, holds_out: bool) -> Result<Self> {
        Ok(ProjectionStats {
            projections,
            all: Moments::zero()?,
            held_out: holds_out.then(Moments::zero).transpose()?,
            scale: 1.0,
            about_means: false,
        })
    }

    /// The same with products about means.
    pub(super) fn about_means(self, about_means: bool) -> Self {
        ProjectionStats {
            about_means,
            ..self
        }
    }

    /// The moments of one batch of X, R and what R is left of.
    pub(super) fn moments(&self, x: &Tensor, r: &Tensor, target: &Tensor) -> Result<Vec<Tensor>> {
        let (x_nc, r_ne) = (rows(x)?, rows(r)?);
        let numbers = [
            total(&r_ne.f_square()?)?,
            r_ne.size2()?.0 as f64,
            total(&rows(target)?.f_square()?)?,
        ];
        let sum = |x: &Tensor| x.f_sum_dim_intlist(0i64, false, Kind::Double);
        let (x_sum_c, r_sum_e) = (sum(&x_nc)?, sum(&r_ne)?);
        let less_mean = |x: &Tensor| x.f_sub(&x.f_mean_dim(0i64, true, Kind::Float)?);
        let (x_nc, r_ne) = match self.about_means {
            true => (less_mean(&x_nc)?, less_mean(&r_ne)?),
            false => (x_nc, r_ne),
        };
        products((&x_nc, &r_ne), (x_sum_c, r_sum_e), numbers)
    }

    /// Adds what a batch gave.
    pub(super) fn add(&mut self, batch: usize, of_batch: &[Tensor]) -> Result<()> {
        if let Some(held_out) = &mut self.held_out
            && batch % HELD_OUT == HELD_OUT - 1
        {
            held_out.add(of_batch, self.about_means)?;
        }
        self.all.add(of_batch, self.about_means)
    }
}

/// What a batch adds to moments.
pub(super) fn products(
    (x_nc, r_ne): (&Tensor, &Tensor),
    (x_sum_c, r_sum_e): (Tensor, Tensor),
    numbers: [f64; 3],
) -> Result<Vec<Tensor>> {
    Ok(vec![
        x_nc.f_transpose(0, 1)?.f_matmul(x_nc)?,
        r_ne.f_transpose(0, 1)?.f_matmul(x_nc)?,
        x_sum_c,
        r_sum_e,
        Tensor::f_from_slice(&numbers)?,
    ])
}

/// Adds in place, where the sum has its shape by now: squares of wide projections are large.
pub(super) fn add_to(sum: &mut Tensor, given: &Tensor) -> Result<()> {
    let given = given.f_to_device(Device::Cpu)?;
    match sum.size() == given.size() {
        true => _ = sum.f_add_(&given)?,
        false => *sum = sum.f_add(&exact(&given)?)?,
    }
    Ok(())
}

pub(super) fn total(x: &Tensor) -> Result<f64> {
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
