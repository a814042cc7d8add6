//! Losses on logits, row by row.

pub(crate) mod cross_entropy;
pub(crate) mod forward_kl;
