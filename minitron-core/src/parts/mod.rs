//! What a model is described with: named sizes, tensors by role, places where activations are seen,
//! norms, rotations. Data only, of no model in particular.

mod activation;
mod config_key;
mod constraint;
mod cost;
mod dim;
mod norm;
mod part;
mod rotary;
mod site;

pub use activation::Activation;
pub use config_key::{ConfigKey, PatternForm};
pub use constraint::Constraint;
pub use cost::Cost;
pub use dim::{DEPTH, Dim, HEADS, HIDDEN, KV_HEADS, MLP, ROPE_PAIRS, dim_of_layer, split_dim};
pub use norm::{Norm, NormKind};
pub use part::{At, Param, ParamKind, Part, Role, Side, SizeOf, UnitsOf, units};
pub use rotary::{Rotary, RotaryScaling};
pub use site::{Port, Ports, Site};
