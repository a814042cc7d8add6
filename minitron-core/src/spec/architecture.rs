use std::fmt::Debug;

use super::{CheckpointInfo, ClientLimit, ModelSpec, Sizes};
use crate::checkpoint::Config;
use crate::error::Result;

/// A family of transformers: the only place that knows its tensor names and config keys.
///
/// # Law
/// The spec declares every weight that the family's `transformers` class has, with the sides it is
/// stored with; the forward pass built from it equals that class within 1e-4 (max absolute, f32).
/// `spec` is a function of its argument alone.
#[typetag::serde(tag = "type")]
pub trait Architecture: Debug + Send + Sync {
    /// Whether a config belongs to this family, usually by `model_type`.
    fn recognises(&self, config: &Config) -> bool;

    /// Describes the model: dims, tensors, options.
    ///
    /// # Errors
    /// `Checkpoint` for a missing key, a value out of range, or an option of the family that is not
    /// supported.
    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec>;

    /// Programs that take this family but not a model of these sizes (kinds left out keep the
    /// spec's), with what helps. People read it when they plan and inspect.
    fn client_limits(&self, _spec: &ModelSpec, _sizes: &Sizes) -> Vec<ClientLimit> {
        Vec::new()
    }

    /// The config of the same model in a family whose layers may differ in their sizes, where there
    /// is one that has the same tensors under the same names: a Llama as a DeciLM.
    fn with_layers_apart(&self, _config: &Config) -> Option<Config> {
        None
    }
}
