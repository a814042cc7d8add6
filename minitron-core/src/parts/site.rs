//! Places of a model where activations can be observed.

use super::at::At;
use super::part::Role;

/// A place of a sublayer, by name; a mixer from elsewhere may have ports of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub &'static str);

impl Port {
    /// Residual stream before the sublayer, [B, T, E].
    pub const STREAM: Port = Port("stream");
    /// What the mixer reads: the norm's output where there is one before it, [B, T, E].
    pub const INPUT: Port = Port("input");
    /// What the mixer gives, before a norm on it and the sum, [B, T, E].
    pub const OUTPUT: Port = Port("output");
    /// Queries before they are rotated, heads in order, [B, T, H·K].
    pub const QUERY: Port = Port("query");
    /// Keys before they are rotated, [B, T, G·K].
    pub const KEY: Port = Port("key");
    /// Values [B, T, G·K].
    pub const VALUE: Port = Port("value");
    /// Input of attention's output projection, heads in order, [B, T, H·K].
    pub const HEADS: Port = Port("heads");
    /// What share each rope pair has of a token's queries, keys and values, [B, T, P].
    pub const ROPE_PAIRS: Port = Port("rope_pairs");
    /// An MLP's activated projection before its non-linearity, [B, T, F].
    pub const PRE_ACTIVATION: Port = Port("pre_activation");
    /// A gated MLP's other projection, which the activated one is multiplied by, [B, T, F].
    pub const FACTOR: Port = Port("factor");
    /// Input of an MLP's second projection, [B, T, F].
    pub const NEURONS: Port = Port("neurons");
}

/// A mixer's projections, as reconstructions see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// Those that read the stream: they share one input. A family has some of them.
    pub readers: Vec<Role>,
    /// The one that writes to it, where all tokens go through one.
    pub writer: Option<Writer>,
    /// That of each of its equal parts, experts. Each shows what it reads, with tokens or without.
    pub of_units: Option<Writer>,
}

/// A projection that writes to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Which.
    pub role: Role,
    /// Where its input shows.
    pub reads: Port,
}

impl Ports {
    /// Of a mixer whose tokens all go the same way.
    pub fn new(readers: Vec<Role>, writer: Role, reads: Port) -> Self {
        Ports {
            readers,
            writer: Some(Writer {
                role: writer,
                reads,
            }),
            of_units: None,
        }
    }
}

/// A place to observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Residual stream before the layer, [B, T, E].
    LayerInput(usize),
    /// A port of a sublayer.
    Inside {
        /// The sublayer.
        at: At,
        /// The port.
        port: Port,
    },
    /// Residual stream after the layer, [B, T, E].
    LayerOutput(usize),
    /// Residual stream after layer `first + span − 1`, beside the one before layer `first`; a
    /// calibration pass alone shows it.
    LayerSpan {
        /// First layer of the run.
        first: usize,
        /// Layers in the run.
        span: usize,
    },
    /// The last hidden state, after the final norm where the family has one, [B, T, E].
    Last,
}
