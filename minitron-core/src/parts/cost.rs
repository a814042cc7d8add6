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
