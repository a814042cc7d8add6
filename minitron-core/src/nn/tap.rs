//! Places inside the model where activations can be read.

use tch::Tensor;

use crate::error::{Present, Result};
use crate::parts::{At, Port, Site};

/// Something that looks on during a forward pass.
pub trait Tap {
    /// Whether this site is wanted; asked before every [`Tap::see`].
    fn wants(&self, site: Site) -> bool;

    /// Shown the site's activations, in forward order.
    fn see(&mut self, site: Site, x: &Tensor) -> Result<()>;
}

/// Looks at nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn see(&mut self, _site: Site, _x: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// What a mixer shows its ports to.
pub struct PortTap<'t> {
    at: At,
    tap: &'t mut dyn Tap,
    spread: Option<Spread<'t>>,
    echo: Option<Echo<'t>>,
}

/// A port that shows what another one does, times something.
#[derive(Debug, Clone, Copy)]
struct Echo<'t> {
    of: Port,
    at: Port,
    factor: Option<&'t Tensor>,
}

/// Which of all tokens a part of them is.
#[derive(Debug, Clone, Copy)]
struct Spread<'t> {
    /// Their places among the B·T tokens \[N\].
    tokens_n: &'t Tensor,
    n_batch: i64,
    n_tokens: i64,
}

impl<'t> PortTap<'t> {
    /// Of one sublayer.
    pub fn new(at: At, tap: &'t mut dyn Tap) -> Self {
        PortTap {
            at,
            tap,
            spread: None,
            echo: None,
        }
    }

    /// The same, with what the first of two ports shows shown at the second as well, times a factor
    /// [B, T, 1] where there is one.
    pub fn echoed<'u>(
        &'u mut self,
        (of, at): (Port, Port),
        factor: Option<&'u Tensor>,
    ) -> PortTap<'u> {
        PortTap {
            at: self.at,
            tap: &mut *self.tap,
            spread: self.spread,
            echo: Some(Echo { of, at, factor }),
        }
    }

    /// Of an expert, which some tokens go through: their places among all \[N\] of a batch. What it
    /// shows of them, [N, C], is seen as [B, T, C], zero elsewhere.
    pub fn unit<'u>(
        &'u mut self,
        unit: usize,
        tokens_n: &'u Tensor,
        (n_batch, n_tokens): (i64, i64),
    ) -> PortTap<'u> {
        PortTap {
            at: self.at.unit(unit),
            tap: &mut *self.tap,
            spread: Some(Spread {
                tokens_n,
                n_batch,
                n_tokens,
            }),
            echo: None,
        }
    }

    /// Whether this port is looked at.
    pub fn wants(&self, port: Port) -> bool {
        self.tap.wants(Site::Inside { at: self.at, port })
    }

    /// Shows a port's activations, where somebody looks.
    ///
    /// # Errors
    /// What those who look run into.
    pub fn show(&mut self, port: Port, x: &Tensor) -> Result<()> {
        let echo = self.echo.filter(|echo| echo.of == port);
        if let Some(Echo { at, factor, .. }) = echo.filter(|echo| self.wants(echo.at)) {
            let x = match factor {
                Some(factor) => x.f_mul(factor)?,
                None => x.shallow_clone(),
            };
            self.see(at, &x)?;
        }
        match self.wants(port) {
            true => self.see(port, x),
            false => Ok(()),
        }
    }

    /// What all tokens have there.
    fn see(&mut self, port: Port, x: &Tensor) -> Result<()> {
        let site = Site::Inside { at: self.at, port };
        match &self.spread {
            Some(spread) => self.tap.see(site, &spread.of_all(x)?),
            None => self.tap.see(site, x),
        }
    }
}

impl Spread<'_> {
    fn of_all(&self, x: &Tensor) -> Result<Tensor> {
        let n_channels = x.size().last().copied().present("channels of a port")?;
        let x_nc = x.f_reshape([-1, n_channels])?;
        let n_all = self.n_batch * self.n_tokens;
        let all = x_nc.f_new_zeros([n_all, n_channels], (x_nc.f_kind()?, x_nc.device()))?;
        let all = all.f_index_add(0, self.tokens_n, &x_nc)?;
        Ok(all.f_view([self.n_batch, self.n_tokens, n_channels])?)
    }
}

/// Shows a site where somebody looks.
pub fn show(tap: &mut dyn Tap, site: Site, x: &Tensor) -> Result<()> {
    if tap.wants(site) {
        tap.see(site, x)
    } else {
        Ok(())
    }
}
