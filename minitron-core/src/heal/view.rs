//! A healed student as a view: replaced weights before the pruned ones.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::Tensor;

use crate::checkpoint::{TensorInfo, TensorSource, append_tensor};
use crate::error::Result;
use crate::prune::PrunedView;

/// The tensors of a student under treatment.
pub struct HealedView<'a> {
    pruned: PrunedView<'a>,
    /// As they are stored.
    changes: BTreeMap<&'a str, &'a Tensor>,
}

impl<'a> HealedView<'a> {
    pub(super) fn new(pruned: PrunedView<'a>, changes: BTreeMap<&'a str, &'a Tensor>) -> Self {
        HealedView { pruned, changes }
    }
}

impl TensorSource for HealedView<'_> {
    fn names(&self) -> Vec<String> {
        self.pruned.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.pruned.info(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        match self.changes.get(name) {
            Some(tensor) => Ok(tensor.f_narrow(0, rows.start as i64, rows.len() as i64)?.f_contiguous()?),
            None => self.pruned.read_rows(name, rows),
        }
    }

    fn append_rows(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        match self.changes.get(name) {
            Some(tensor) => append_tensor(&tensor.f_narrow(0, rows.start as i64, rows.len() as i64)?, bytes),
            None => self.pruned.append_rows(name, rows, bytes),
        }
    }
}
