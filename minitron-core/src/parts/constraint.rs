//! What ties the sizes of a model to each other.

use super::{HEADS, HIDDEN};

/// A rule that a student's sizes keep. Data only: `plan` solves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constraint {
    /// One size is another one, times a number.
    Product {
        /// Kind of the product.
        of: String,
        /// Kind of its factor.
        by: String,
        /// The other factor.
        times: usize,
        /// Why, for messages.
        why: &'static str,
    },
    /// One size is a multiple of another one. The source's own sizes are never refused.
    Divides {
        /// Kind that divides.
        divisor: String,
        /// Kind of the multiple.
        of: String,
        /// Why, for messages.
        why: &'static str,
    },
    /// A kind has at least so many units.
    AtLeast {
        /// The kind.
        kind: String,
        /// How many.
        least: usize,
        /// Why, for messages.
        why: &'static str,
    },
    /// A kind keeps its size.
    Held {
        /// The kind.
        kind: String,
        /// Why, for messages.
        why: &'static str,
    },
}

impl Constraint {
    /// The residual stream is as wide as all heads together.
    pub fn hidden_follows_heads(head_dim: usize, why: &'static str) -> Self {
        Constraint::Product {
            of: HIDDEN.to_owned(),
            by: HEADS.to_owned(),
            times: head_dim,
            why,
        }
    }

    /// The same, of a family without a config key for `head_dim`.
    pub fn no_head_dim(head_dim: usize) -> Self {
        Self::hidden_follows_heads(head_dim, "a config of this family has no head_dim")
    }

    /// The width of the residual stream is a multiple of the query heads, whatever `head_dim` says.
    pub fn heads_divide_hidden() -> Self {
        let why = "this family's config class wants hidden to be a multiple of heads";
        Constraint::Divides {
            divisor: HEADS.to_owned(),
            of: HIDDEN.to_owned(),
            why,
        }
    }

    /// A kind keeps its size.
    pub fn held(kind: &str, why: &'static str) -> Self {
        Constraint::Held {
            kind: kind.to_owned(),
            why,
        }
    }
}
