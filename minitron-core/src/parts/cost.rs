use super::at::At;
use super::part::{Param, Role};

/// The units of a kind of which each token goes through some alone: experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// Their kind.
    pub kind: &'static str,
    /// How many a token goes through.
    pub n: usize,
    /// Tensors that hold all of them; those that are one unit's own are known by that.
    pub stacked: Vec<Role>,
}

impl Active {
    /// Whether a tensor of the mixer is theirs.
    pub fn holds(&self, param: &Param) -> bool {
        matches!(param.at, At::Unit { .. }) || self.stacked.contains(&param.role)
    }
}

/// What a mixer costs beside its weights. Numbers, not bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Held for each earlier token that can still be seen, in generation.
    pub cache_per_token: u64,
    /// Tokens that can still be seen, where not all can.
    pub cached_tokens: Option<usize>,
    /// Held for all of them together, however many.
    pub state: u64,
    /// Held for each token until the backward pass.
    pub inside: u64,
}
