//! A tap that remembers what one part shows.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::error::Result;
use crate::model::{Port, Site, Tap};
use crate::spec::At;

/// Remembers what some ports of one part show.
pub(super) struct ShownPorts {
    pub at: At,
    pub wanted: Vec<Port>,
    pub seen: BTreeMap<Port, Tensor>,
}

impl Tap for ShownPorts {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Inside { at, port } if at == self.at && self.wanted.contains(&port))
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        if let Site::Inside { port, .. } = site {
            self.seen.insert(port, x.shallow_clone());
        }
        Ok(())
    }
}
