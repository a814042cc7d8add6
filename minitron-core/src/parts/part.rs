//! Tensor sides as concatenations of parts, and what each tensor is for.

use std::fmt;

use super::at::At;

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
    /// The same parts in a row for each unit of `dim`, units in order: heads whose channels can go
    /// too.
    Each {
        /// Full name of the dim.
        dim: String,
        /// What a unit is made of.
        parts: Vec<Part>,
    },
    /// Of a tensor that stacks experts along its first side: `block` positions for each unit of
    /// the row's own dim, all of one size.
    OfRow {
        /// Full names of the dims, row after row.
        dims: Vec<String>,
        /// Positions a unit takes.
        block: usize,
    },
}

/// Sizes of dims by name.
pub type SizeOf<'a> = &'a dyn Fn(&str) -> Option<usize>;

impl Part {
    /// Length when the dims have the given sizes; an unknown dim counts as empty.
    pub fn len(&self, size_of: SizeOf) -> usize {
        match self {
            Part::Units { dim, block } => size_of(dim).unwrap_or(0).saturating_mul(*block),
            Part::Fixed(n) => *n,
            Part::Each { dim, parts } => size_of(dim)
                .unwrap_or(0)
                .saturating_mul(len_of(parts, size_of)),
            Part::OfRow { dims, block } => {
                let first = dims.first().and_then(|dim| size_of(dim));
                first.unwrap_or(0).saturating_mul(*block)
            }
        }
    }

    /// The same part as it is in one row of the first side.
    #[must_use]
    pub fn in_row(&self, row: usize) -> Part {
        match self {
            Part::OfRow { dims, block } => Part::Units {
                dim: dims.get(row).cloned().unwrap_or_default(),
                block: *block,
            },
            other => other.clone(),
        }
    }

    /// The dim whose units follow each other along the part, and the positions that each of them
    /// takes.
    pub fn units(&self, size_of: SizeOf) -> Option<(&str, usize)> {
        match self {
            Part::Units { dim, block } => Some((dim, *block)),
            Part::Fixed(_) | Part::OfRow { .. } => None,
            Part::Each { dim, parts } => Some((dim, len_of(parts, size_of))),
        }
    }

    /// The parts that each unit is made of, where it is made of any.
    pub fn inner(&self) -> &[Part] {
        if let Part::Each { parts, .. } = self {
            parts
        } else {
            &[]
        }
    }

    /// Every dim whose units are somewhere in it.
    pub fn dims(&self) -> Vec<&str> {
        match self {
            Part::Units { dim, .. } => vec![dim],
            Part::Fixed(_) => Vec::new(),
            Part::Each { dim, parts } => std::iter::once(dim.as_str())
                .chain(parts.iter().flat_map(Part::dims))
                .collect(),
            Part::OfRow { dims, .. } => dims.iter().map(String::as_str).collect(),
        }
    }

    /// See [`Side::positions`]; from `start` on.
    fn positions<'u>(
        &self,
        start: usize,
        size_of: SizeOf,
        units_of: UnitsOf<'_, 'u>,
        into: &mut Vec<usize>,
    ) {
        let Some((dim, block)) = self.units(size_of) else {
            into.extend(start..start + self.len(size_of));
            return;
        };
        let all: Vec<usize>;
        let units = match units_of(dim) {
            Some(units) => units,
            None => {
                all = (0..size_of(dim).unwrap_or(0)).collect();
                all.as_slice()
            }
        };
        for unit in units {
            let mut at = start + unit * block;
            if self.inner().is_empty() {
                into.extend(at..at + block);
            }
            for part in self.inner() {
                part.positions(at, size_of, units_of, into);
                at += part.len(size_of);
            }
        }
    }
}

/// Units of dims by name; none where all of them are meant.
pub type UnitsOf<'a, 'u> = &'a dyn Fn(&str) -> Option<&'u [usize]>;

fn len_of(parts: &[Part], size_of: SizeOf) -> usize {
    parts
        .iter()
        .map(|part| part.len(size_of))
        .fold(0, usize::saturating_add)
}

/// One side of a tensor: its parts in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side(pub Vec<Part>);

impl Side {
    /// Length when the dims have the given sizes; an unknown dim counts as empty.
    pub fn len(&self, size_of: impl Fn(&str) -> Option<usize>) -> usize {
        len_of(&self.0, &size_of)
    }

    /// Every dim whose units are somewhere along it.
    pub fn dims(&self) -> Vec<&str> {
        self.0.iter().flat_map(Part::dims).collect()
    }

    /// Whether it differs from row to row of the first side.
    pub fn is_by_row(&self) -> bool {
        let mut parts = self.0.iter();
        parts.any(|part| matches!(part, Part::OfRow { .. }))
    }

    /// The same side as it is in one row of the first side.
    #[must_use]
    pub fn in_row(&self, row: usize) -> Side {
        Side(self.0.iter().map(|part| part.in_row(row)).collect())
    }

    /// Positions of the given units in the order given, dims that are given none being whole.
    pub fn positions(&self, size_of: SizeOf, units_of: UnitsOf) -> Vec<usize> {
        let (mut positions, mut start) = (Vec::new(), 0);
        for part in &self.0 {
            part.positions(start, size_of, units_of, &mut positions);
            start += part.len(size_of);
        }
        positions
    }
}

/// A side of `block` positions for each unit of one dim.
pub fn units(dim: impl Into<String>, block: usize) -> Side {
    Side(vec![Part::Units {
        dim: dim.into(),
        block,
    }])
}

/// What a tensor does in the part of the model that it belongs to; with its place and
/// [`ParamKind`], it finds the tensor. A mixer from elsewhere brings roles of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Role(pub &'static str);

impl Role {
    /// Token table, [vocab | hidden].
    pub const TOKEN_EMBEDDING: Role = Role("token embedding");
    /// Learned positions, [positions | hidden].
    pub const POSITION_EMBEDDING: Role = Role("position embedding");
    /// Segment table of encoders, [types | hidden]; row 0 is used.
    pub const TYPE_EMBEDDING: Role = Role("type embedding");
    /// Norm on the sum of embeddings.
    pub const EMBEDDING_NORM: Role = Role("embedding norm");
    /// Norm on what a mixer reads.
    pub const INPUT_NORM: Role = Role("input norm");
    /// Norm on what a mixer gives, before it is added to the stream.
    pub const OUTPUT_NORM: Role = Role("output norm");
    /// Norm on the stream after the sum.
    pub const SUM_NORM: Role = Role("sum norm");
    /// Query projection.
    pub const QUERY: Role = Role("query");
    /// Key projection.
    pub const KEY: Role = Role("key");
    /// Value projection.
    pub const VALUE: Role = Role("value");
    /// Query, key and value in one matrix.
    pub const QUERY_KEY_VALUE: Role = Role("query, key and value");
    /// Norm on queries.
    pub const QUERY_NORM: Role = Role("query norm");
    /// Norm on keys.
    pub const KEY_NORM: Role = Role("key norm");
    /// Attention's output projection.
    pub const ATTENTION_OUTPUT: Role = Role("attention output");
    /// The activated projection of a gated MLP.
    pub const GATE: Role = Role("gate");
    /// The first projection; activated where there is no gate.
    pub const UP: Role = Role("up");
    /// Both in one matrix, the activated one first.
    pub const GATE_UP: Role = Role("gate and up");
    /// The second projection.
    pub const DOWN: Role = Role("down");
    /// Norm after the last layer.
    pub const FINAL_NORM: Role = Role("final norm");
    /// Dense layer before a masked-language head.
    pub const HEAD_TRANSFORM: Role = Role("head transform");
    /// Norm before a masked-language head.
    pub const HEAD_NORM: Role = Role("head norm");
    /// Output projection to the vocabulary, where it has weights of its own; its bias in any case.
    pub const HEAD: Role = Role("head");
    /// Pruned and written with the rest, but no part of the forward pass (pooler, classifiers, a
    /// vision tower).
    pub const CARRIED: Role = Role("carried");

    /// Tables and projections of vocabulary or positions: left out of non-embedding counts.
    pub fn is_vocabulary(self) -> bool {
        self.is_table() || self == Role::HEAD
    }

    /// Tables, whose rows are looked up.
    pub fn is_table(self) -> bool {
        [
            Role::TOKEN_EMBEDDING,
            Role::POSITION_EMBEDDING,
            Role::TYPE_EMBEDDING,
        ]
        .contains(&self)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The matrix or the vector of an affine map or norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParamKind {
    /// Matrix, table or gain.
    Weight,
    /// Additive vector.
    Bias,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Name in the file, `{l}` for the layer, `{e}` for the expert.
    pub template: String,
    /// Where it belongs.
    pub at: At,
    /// What it does.
    pub role: Role,
    /// Matrix or vector.
    pub kind: ParamKind,
    /// The dim of whose units it is one's own: `experts.3`. It goes with the unit.
    pub unit_of: Option<String>,
    /// Its sides, in stored order.
    pub sides: Vec<Side>,
    /// Stored as [in | out] (of several experts, [X | in | out]), the transpose of what a linear
    /// layer multiplies with.
    pub transposed: bool,
    /// Other names under which the same tensor may lie in the file (ties); never read, never
    /// written.
    pub aliases: Vec<String>,
}

impl Param {
    /// Name in the file.
    pub fn name(&self) -> String {
        self.name_at(self.at)
    }

    /// The layer it belongs to.
    pub fn layer(&self) -> Option<usize> {
        self.at.layer()
    }

    /// Name as if it belonged elsewhere.
    pub fn name_at(&self, at: At) -> String {
        match at {
            At::Model => self.template.clone(),
            At::Sublayer { layer, .. } => self.template.replace("{l}", &layer.to_string()),
            At::Unit { layer, unit, .. } => {
                let of_layer = self.template.replace("{l}", &layer.to_string());
                of_layer.replace("{e}", &unit.to_string())
            }
        }
    }

    /// Where it belongs in a student of these layers and, of each dim, these units; none where its
    /// layer or its unit goes.
    pub fn place_in(&self, layers: &[usize], units_of: UnitsOf) -> Option<At> {
        let at = match self.layer() {
            None => self.at,
            Some(layer) => {
                let place = layers.iter().position(|&kept| kept == layer);
                self.at.in_layer(place?)
            }
        };
        match (self.at, self.unit_of.as_deref().and_then(units_of)) {
            (At::Unit { unit, .. }, Some(kept)) => {
                let place = kept.iter().position(|&kept| kept == unit);
                Some(at.unit(place?))
            }
            _ => Some(at),
        }
    }

    /// Whether it travels as it is: no axis cuts it, and nothing computes with it.
    pub fn is_passed_through(&self) -> bool {
        let mut parts = self.sides.iter().flat_map(|side| &side.0);
        self.role == Role::CARRIED && parts.all(|part| matches!(part, Part::Fixed(_)))
    }

    /// Whether weight decay applies: matrices and tables, not gains and biases.
    pub fn decays(&self) -> bool {
        self.sides.len() > 1
    }
}
