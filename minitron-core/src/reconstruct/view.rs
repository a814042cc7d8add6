//! A reconstructed student as a view: replaced weights before the pruned ones.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::store::Held;
use crate::checkpoint::{TensorInfo, TensorSource, append_tensor};
use crate::error::Result;
use crate::prune::PrunedView;

/// The tensors of a student under reconstruction.
pub struct ReconstructedView<'a> {
    pruned: PrunedView<'a>,
    /// As they are stored.
    changes: BTreeMap<&'a str, &'a Held>,
    /// Factors of pruned tensors, taken as they are read: a token table is too large to be held.
    factors: &'a BTreeMap<String, f64>,
}

impl<'a> ReconstructedView<'a> {
    pub(super) fn new(
        pruned: PrunedView<'a>,
        changes: BTreeMap<&'a str, &'a Held>,
        factors: &'a BTreeMap<String, f64>,
    ) -> Self {
        ReconstructedView {
            pruned,
            changes,
            factors,
        }
    }
}

impl TensorSource for ReconstructedView<'_> {
    fn names(&self) -> Vec<String> {
        self.pruned.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.pruned.info(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        match self.changes.get(name) {
            Some(held) => held.rows(rows),
            None => scaled(self.pruned.read_rows(name, rows)?, self.factors.get(name)),
        }
    }

    fn append_rows(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        match self.changes.get(name) {
            Some(held) => held.append_rows(rows, bytes),
            None if self.factors.contains_key(name) => {
                append_tensor(&self.read_rows(name, rows)?, bytes)
            }
            None => self.pruned.append_rows(name, rows, bytes),
        }
    }
}

/// In f64, rounded once.
fn scaled(stored: Tensor, factor: Option<&f64>) -> Result<Tensor> {
    match factor {
        None => Ok(stored),
        Some(&factor) => Ok(stored
            .f_to_kind(Kind::Double)?
            .f_mul_scalar(factor)?
            .f_to_kind(stored.f_kind()?)?),
    }
}
