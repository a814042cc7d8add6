//! How the weights of attention are stored, and what its norms are over.

/// How queries, keys and values are projected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// By three matrices.
    #[default]
    Split,
    /// By one: all queries, then all keys, then all values.
    Fused,
    /// By one: query, key and value of each head in turn.
    FusedByHead,
}

/// What a norm of queries, or of keys, is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head on its own, \[K\] gains for all heads.
    Head,
    /// All heads of a token together, \[H·K\] and \[G·K\] gains.
    Projection,
}
