//! What a plugin says of itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::{
    Allocator, Architecture, Axis, Corpus, Evaluator, Importance, LogitLoss, Reconstruction,
    StateLoss,
};
use crate::error::{Error, Result};

/// The contract that a plugin fulfils.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`Architecture`]
    Architecture,
    /// [`Axis`]
    Axis,
    /// [`Importance`]
    Importance,
    /// [`Allocator`]
    Allocator,
    /// [`Reconstruction`]
    Reconstruction,
    /// [`LogitLoss`]
    Loss,
    /// [`StateLoss`]
    StateLoss,
    /// [`Evaluator`]
    Evaluator,
    /// [`Corpus`]
    Corpus,
}

impl Kind {
    /// All kinds, in the order of the flow.
    pub const ALL: &[Kind] = &[
        Kind::Architecture,
        Kind::Axis,
        Kind::Importance,
        Kind::Allocator,
        Kind::Reconstruction,
        Kind::Loss,
        Kind::StateLoss,
        Kind::Evaluator,
        Kind::Corpus,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Architecture => "architecture",
            Kind::Axis => "axis",
            Kind::Importance => "importance",
            Kind::Allocator => "allocator",
            Kind::Reconstruction => "reconstruction",
            Kind::Loss => "loss",
            Kind::StateLoss => "state_loss",
            Kind::Evaluator => "evaluator",
            Kind::Corpus => "corpus",
        }
    }
}

impl FromStr for Kind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let known = Kind::ALL.iter().map(|kind| kind.name());
        // The name of earlier versions.
        let text = if text == "healing" {
            Kind::Reconstruction.name()
        } else {
            text
        };
        let found = Kind::ALL.iter().find(|kind| kind.name() == text);
        found
            .copied()
            .ok_or_else(|| Error::unknown("kind", text, known))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A constructor from `{"type": tag, ...parameters}`, made in the plugin's own binary.
pub type BuildFn<C> = fn(Value) -> serde_json::Result<Box<C>>;

/// The constructor, by contract.
#[derive(Debug, Clone, Copy)]
pub enum Build {
    /// Builds an [`Architecture`].
    Architecture(BuildFn<dyn Architecture>),
    /// Builds an [`Axis`].
    Axis(BuildFn<dyn Axis>),
    /// Builds an [`Importance`].
    Importance(BuildFn<dyn Importance>),
    /// Builds an [`Allocator`].
    Allocator(BuildFn<dyn Allocator>),
    /// Builds a [`Reconstruction`].
    Reconstruction(BuildFn<dyn Reconstruction>),
    /// Builds a [`LogitLoss`].
    LogitLoss(BuildFn<dyn LogitLoss>),
    /// Builds a [`StateLoss`].
    StateLoss(BuildFn<dyn StateLoss>),
    /// Builds an [`Evaluator`].
    Evaluator(BuildFn<dyn Evaluator>),
    /// Builds a [`Corpus`].
    Corpus(BuildFn<dyn Corpus>),
}

/// A registered plugin. Made by [`plugin!`](crate::plugin).
#[derive(Debug)]
pub struct Descriptor {
    /// Its contract.
    pub kind: Kind,
    /// Its public name: the struct's name in snake_case.
    pub tag: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Paper and section, or the work it comes from.
    pub source: &'static str,
    /// Crate and version.
    pub origin: &'static str,
    /// JSON Schema of its parameters.
    pub schema: fn() -> schemars::Schema,
    /// Parameters with all defaults.
    pub example: fn() -> Value,
    /// Its constructor.
    pub build: Build,
}

impl Descriptor {
    /// Builds a plugin from `{"type": tag, ...parameters}` and writes it down again, whatever its
    /// kind.
    ///
    /// # Errors
    /// Parameters that it does not have, or does not take.
    pub fn rewritten(&self, value: Value) -> serde_json::Result<Value> {
        use serde_json::to_value;
        match self.build {
            Build::Architecture(build) => to_value(build(value)?),
            Build::Axis(build) => to_value(build(value)?),
            Build::Importance(build) => to_value(build(value)?),
            Build::Allocator(build) => to_value(build(value)?),
            Build::Reconstruction(build) => to_value(build(value)?),
            Build::LogitLoss(build) => to_value(build(value)?),
            Build::StateLoss(build) => to_value(build(value)?),
            Build::Evaluator(build) => to_value(build(value)?),
            Build::Corpus(build) => to_value(build(value)?),
        }
    }
}

inventory::collect!(Descriptor);

/// Ties a contract's trait to its [`Kind`] and constructor.
pub trait Contract {
    /// The kind.
    const KIND: Kind;
    /// The constructor in a descriptor of that kind.
    fn builder(descriptor: &Descriptor) -> Option<BuildFn<Self>>;
}

macro_rules! contract {
    ($contract:ident, $kind:ident) => {
        impl Contract for dyn $contract {
            const KIND: Kind = Kind::$kind;
            fn builder(descriptor: &Descriptor) -> Option<BuildFn<Self>> {
                match descriptor.build {
                    Build::$contract(build) => Some(build),
                    _ => None,
                }
            }
        }
    };
}

contract!(Architecture, Architecture);
contract!(Axis, Axis);
contract!(Importance, Importance);
contract!(Allocator, Allocator);
contract!(Reconstruction, Reconstruction);
contract!(LogitLoss, Loss);
contract!(StateLoss, StateLoss);
contract!(Evaluator, Evaluator);
contract!(Corpus, Corpus);

/// Registers a plugin with the crate it stands in.
///
/// ```ignore
/// minitron_core::plugin! {
///     Importance for Activation {
///         tag: "activation", summary: "…", source: "arXiv 2407.14679 §2.2"
///     }
/// }
/// ```
/// The struct needs `Default`, `Serialize` and `schemars::JsonSchema`, and its contract implemented
/// under `#[typetag::serde(name = "activation")]` with the same tag.
#[macro_export]
macro_rules! plugin {
    ($($plugin:tt)*) => {
        $crate::inventory::submit! { $crate::descriptor! { $($plugin)* } }
    };
}

/// The [`Descriptor`] that [`plugin!`](crate::plugin) registers, for who hands it to a
/// [`Registry`](crate::registry::Registry).
#[macro_export]
macro_rules! descriptor {
    ($contract:ident for $plugin:ident {
        tag: $tag:literal, summary: $summary:literal, source: $source:literal $(,)?
    }) => {
        $crate::registry::Descriptor {
            kind: <dyn $crate::contract::$contract as $crate::registry::Contract>::KIND,
            tag: $tag,
            summary: $summary,
            source: $source,
            origin: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
            schema: || $crate::registry::shielded($crate::registry::inlined::<$plugin>),
            example: || {
                $crate::registry::shielded(|| {
                    $crate::serde_json::to_value(<$plugin>::default()).unwrap_or_default()
                })
            },
            build: $crate::registry::Build::$contract(|mut value| {
                if let Some(object) = value.as_object_mut() {
                    object.shift_remove("type");
                }
                let plugin = $crate::registry::parsed::<$plugin>(value)?;
                let origin = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
                let who = $crate::registry::Who { tag: $tag, origin };
                Ok(Box::new($crate::registry::Guarded::new(who, plugin)))
            }),
        }
    };
}
