//! Places in a model.

use std::cmp::Ordering;
use std::fmt;

/// Which part of the model a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// Around the layers.
    Model,
    /// In a layer.
    Sublayer {
        /// The layer.
        layer: usize,
        /// Its place in the layer.
        sublayer: usize,
    },
    /// In one of several equal parts of a sublayer: an expert.
    Unit {
        /// The layer.
        layer: usize,
        /// Its place in the layer.
        sublayer: usize,
        /// Which of them.
        unit: usize,
    },
}

/// In forward order: what is around the layers, then a sublayer and its equal parts.
impl Ord for At {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl At {
    fn order(self) -> Option<(usize, usize, Option<usize>)> {
        match self {
            At::Model => None,
            At::Sublayer { layer, sublayer } => Some((layer, sublayer, None)),
            At::Unit {
                layer,
                sublayer,
                unit,
            } => Some((layer, sublayer, Some(unit))),
        }
    }

    /// The layer.
    pub fn layer(self) -> Option<usize> {
        match self {
            At::Model => None,
            At::Sublayer { layer, .. } | At::Unit { layer, .. } => Some(layer),
        }
    }

    /// The layer and the place in it.
    pub fn place(self) -> Option<(usize, usize)> {
        match self {
            At::Model => None,
            At::Sublayer { layer, sublayer }
            | At::Unit {
                layer, sublayer, ..
            } => Some((layer, sublayer)),
        }
    }

    /// The sublayer as a whole.
    #[must_use]
    pub fn whole(self) -> At {
        match self.place() {
            None => At::Model,
            Some((layer, sublayer)) => At::Sublayer { layer, sublayer },
        }
    }

    /// One of its equal parts; what is around the layers has none.
    #[must_use]
    pub fn unit(self, unit: usize) -> At {
        match self.place() {
            None => At::Model,
            Some((layer, sublayer)) => At::Unit {
                layer,
                sublayer,
                unit,
            },
        }
    }

    /// The same place in another layer.
    #[must_use]
    pub fn in_layer(self, layer: usize) -> At {
        match self {
            At::Model => At::Model,
            At::Sublayer { sublayer, .. } => At::Sublayer { layer, sublayer },
            At::Unit { sublayer, unit, .. } => At::Unit {
                layer,
                sublayer,
                unit,
            },
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            At::Model => f.write_str("the model"),
            At::Sublayer { layer, sublayer } => write!(f, "layer {layer}, part {sublayer}"),
            At::Unit {
                layer,
                sublayer,
                unit,
            } => write!(f, "layer {layer}, part {sublayer}, expert {unit}"),
        }
    }
}
