//! What a model is described with: named sizes, tensors by role, places where activations are seen,
//! norms, rotations. Data only, of no model in particular.

mod activation;
mod at;
mod config_key;
mod constraint;
mod cost;
mod dim;
mod norm;
mod part;
mod rotary;
mod site;

pub use activation::Activation;
pub use at::At;
pub use config_key::{ConfigKey, EntryForm, PatternForm};
pub use constraint::Constraint;
pub use cost::{Active, Cost};
pub use dim::{
    DEPTH, Dim, EXPERT_GROUPS, EXPERT_MLP, EXPERTS, HEADS, HIDDEN, KV_HEADS, MLP, ROPE_PAIRS,
    SHARED_MLP, dim_of_layer, dim_of_unit, split_dim, split_unit,
};
pub use norm::{Norm, NormKind};
pub use part::{Param, ParamKind, Part, Role, Side, SizeOf, UnitsOf, units};
pub use rotary::{Rotary, RotaryScaling};
pub use site::{Port, Ports, Site, Writer};
