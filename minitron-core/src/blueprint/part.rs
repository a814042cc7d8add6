//! Tensor sides as concatenations of parts, and what each tensor is for.

/// A run along one side of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// `block` consecutive positions for each unit of `dim`, units in order.
    Units {
        /// Full name of the dim.
        dim: String,
        /// Positions a unit takes: 1 for a channel, `head_dim` for a head.
        block: usize,
    },
    /// Positions that no axis prunes (vocabulary, positions).
    Fixed(usize),
}

/// One side of a tensor: its parts in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side(pub Vec<Part>);

impl Side {
    /// Length when the dims have the given sizes; an unknown dim counts as empty.
    pub fn len(&self, size_of: impl Fn(&str) -> Option<usize>) -> usize {
        let part_len = |part: &Part| match part {
            Part::Units { dim, block } => size_of(dim).unwrap_or(0).saturating_mul(*block),
            Part::Fixed(n) => *n,
        };
        self.0.iter().map(part_len).fold(0, usize::saturating_add)
    }
}

/// A side of `block` positions for each unit of one dim.
pub fn units(dim: impl Into<String>, block: usize) -> Side {
    Side(vec![Part::Units { dim: dim.into(), block }])
}

/// What a tensor does in the model; with the layer and [`Slot`], it finds the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token table, [vocab | hidden].
    TokenEmbedding,
    /// Learned positions, [positions | hidden].
    PositionEmbedding,
    /// Segment table of encoders, [types | hidden]; row 0 is used.
    TypeEmbedding,
    /// Norm on the sum of embeddings.
    EmbeddingNorm,
    /// Norm before attention (after it, in post-norm families).
    AttentionNorm,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// Query, key and value in one matrix.
    QueryKeyValue,
    /// Attention's output projection.
    AttentionOutput,
    /// Norm before the MLP (after it, in post-norm families).
    MlpNorm,
    /// The activated projection of a gated MLP.
    Gate,
    /// The first projection; activated where there is no gate.
    Up,
    /// The second projection.
    Down,
    /// Norm after the last layer.
    FinalNorm,
    /// Dense layer before a masked-language head.
    HeadTransform,
    /// Norm before a masked-language head.
    HeadNorm,
    /// Output projection to the vocabulary, where it has weights of its own; its bias in any case.
    Head,
    /// Pruned and written with the rest, but no part of the forward pass (pooler, classifiers).
    Carried,
}

impl Role {
    /// Tables and projections of vocabulary or positions: left out of non-embedding counts.
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Role::TokenEmbedding | Role::PositionEmbedding | Role::TypeEmbedding | Role::Head)
    }
}

/// The matrix or the vector of an affine map or norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Matrix, table or gain.
    Weight,
    /// Additive vector.
    Bias,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file, `{l}` for the layer.
    pub template: String,
    /// Layer it belongs to.
    pub layer: Option<usize>,
    /// What it does.
    pub role: Role,
    /// Matrix or vector.
    pub slot: Slot,
    /// Its sides, in stored order.
    pub sides: Vec<Side>,
    /// Stored as [in | out], the transpose of what a linear layer multiplies with.
    pub transposed: bool,
    /// Other names under which the same tensor may lie in the file (ties); never read, never written.
    pub aliases: Vec<String>,
}

impl TensorSpec {
    /// Name in the file.
    pub fn name(&self) -> String {
        self.name_at(self.layer)
    }

    /// Name as if it belonged to another layer.
    pub fn name_at(&self, layer: Option<usize>) -> String {
        match layer {
            Some(layer_idx) => self.template.replace("{l}", &layer_idx.to_string()),
            None => self.template.clone(),
        }
    }

    /// Whether weight decay applies: matrices and tables, not gains and biases.
    pub fn decays(&self) -> bool {
        self.sides.len() > 1
    }
}
