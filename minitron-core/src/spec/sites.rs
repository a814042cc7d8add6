//! Where a model's dims and states can be observed, asked by dim and by port.

use super::{At, HEADS, HIDDEN, ModelSpec, ROPE_PAIRS, Sizes, dim_of_layer, split_dim, split_unit};
use super::{Port, Site};

impl ModelSpec {
    /// Where the units of a dim are seen: at the places that mixers name for it, in the expert that
    /// it is of; residual channels at what every mixer reads.
    pub fn observed_at(&self, name: &str) -> Vec<Site> {
        let unit = split_unit(name).2;
        match split_dim(name) {
            (HIDDEN, None) => {
                let layers = 0..self.layers.len();
                layers
                    .flat_map(|layer| self.sublayers(layer))
                    .map(|(at, _)| Site::Inside {
                        at,
                        port: Port::INPUT,
                    })
                    .collect()
            }
            (kind, layer) => {
                let parts = self
                    .layers_of(layer)
                    .flat_map(|layer| self.sublayers(layer));
                let sites = parts.flat_map(|(at, part)| {
                    let seen = part
                        .mixer
                        .observed()
                        .into_iter()
                        .filter(|seen| seen.kind == kind);
                    seen.map(move |seen| Site::Inside {
                        at: unit.map_or(at, |unit| at.unit(unit)),
                        port: seen.port,
                    })
                });
                sites.collect()
            }
        }
    }

    /// One layer, or all of them for a dim that they share.
    fn layers_of(&self, layer: Option<usize>) -> std::ops::Range<usize> {
        layer.map_or(0..self.layers.len(), |layer| layer..layer + 1)
    }

    /// Channels that a unit of a dim has where it is seen: `head_dim` for heads.
    pub fn unit_width(&self, name: &str) -> Option<usize> {
        let (kind, layer) = split_dim(name);
        let parts = self
            .layers_of(layer)
            .flat_map(|layer| self.sublayers(layer));
        let mut observed = parts.flat_map(|(_, part)| part.mixer.observed());
        observed
            .find(|seen| seen.kind == kind)
            .map(|seen| seen.width)
    }

    /// Channels of an attention head in the first layer that has heads; 0 where none has.
    pub fn head_dim(&self) -> usize {
        let widths =
            (0..self.layers.len()).filter_map(|layer| self.unit_width(&dim_of_layer(HEADS, layer)));
        widths.into_iter().next().unwrap_or(0)
    }

    /// The same at other sizes: fewer pairs leave narrower heads.
    pub fn head_dim_at(&self, sizes: &Sizes) -> usize {
        let pairs = self.dims.get(ROPE_PAIRS);
        pairs.map_or(self.head_dim(), |dim| {
            dim.stated_number(self.size_at(ROPE_PAIRS, sizes))
        })
    }

    /// The first part of a layer whose mixer shows a port.
    pub fn part_showing(&self, layer: usize, port: Port) -> Option<At> {
        self.sublayers(layer)
            .find(|(_, part)| part.mixer.shows().contains(&port))
            .map(|(at, _)| at)
    }

    /// A port of the first part of a layer that shows it.
    pub fn site(&self, layer: usize, port: Port) -> Option<Site> {
        self.part_showing(layer, port)
            .map(|at| Site::Inside { at, port })
    }

    /// The state after a layer as the next mixer reads it, or the last hidden state.
    pub fn normed_output(&self, layer: usize) -> Site {
        let next = (layer + 1..self.layers.len())
            .find_map(|next| self.sublayers(next).next().map(|(at, _)| at));
        next.map_or(Site::Last, |at| Site::Inside {
            at,
            port: Port::INPUT,
        })
    }

    /// What the first mixer reads.
    pub fn first_input(&self) -> Site {
        let first =
            (0..self.layers.len()).find_map(|layer| self.sublayers(layer).next().map(|(at, _)| at));
        first.map_or(Site::Last, |at| Site::Inside {
            at,
            port: Port::INPUT,
        })
    }
}
