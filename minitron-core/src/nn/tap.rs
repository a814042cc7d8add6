//! Places inside the model where activations can be read.

use tch::Tensor;

use crate::error::Result;
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
}

impl<'t> PortTap<'t> {
    /// Of one sublayer.
    pub fn new(at: At, tap: &'t mut dyn Tap) -> Self {
        PortTap { at, tap }
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
        show(self.tap, Site::Inside { at: self.at, port }, x)
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
