//! The sizes that one axis may have.

use crate::error::{Error, Result};

/// The legal sizes of one kind of dim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AxisSizes {
    /// `hidden`, `mlp`, `heads`, `kv_heads`, `rope_pairs`, `depth`; `mlp.3` where layers of the
    /// source differ.
    pub kind: String,
    /// Size of the source.
    pub full: usize,
    /// Legal sizes are multiples of this, and the full size.
    pub step: usize,
    /// Why the full size is the only one, where it is.
    pub held: Option<&'static str>,
}

impl AxisSizes {
    /// All legal sizes, ascending.
    pub fn legal(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = (self.step..=self.full).step_by(self.step.max(1)).collect();
        if sizes.last() != Some(&self.full) {
            sizes.push(self.full);
        }
        sizes
    }

    /// The nearest legal sizes below and above.
    pub fn nearest(&self, size: usize) -> Vec<usize> {
        let legal = self.legal();
        let above = legal.partition_point(|&s| s < size);
        let mut near: Vec<usize> = above
            .checked_sub(1)
            .and_then(|i| legal.get(i))
            .copied()
            .into_iter()
            .collect();
        near.extend(legal.get(above));
        near
    }

    /// Refuses an illegal size.
    ///
    /// # Errors
    /// `Plan` naming the nearest legal sizes as they are typed.
    pub fn check(&self, size: usize) -> Result<()> {
        match self.objection(size) {
            None => Ok(()),
            Some(objection) => Err(Error::Plan(format!(
                "{objection}; nearest: {}",
                self.advice(size)
            ))),
        }
    }

    /// Why a size is illegal, where it is.
    pub(super) fn objection(&self, size: usize) -> Option<String> {
        if size == self.full || (size > 0 && size < self.full && size.is_multiple_of(self.step)) {
            return None;
        }
        if let Some(why) = self.held {
            return Some(format!(
                "{}: {size} is not legal, it keeps its {}: {why}",
                self.kind, self.full
            ));
        }
        let rule = if self.step > 1 {
            format!(" multiple of {}", self.step)
        } else {
            " size".to_owned()
        };
        Some(format!(
            "{}: {size} is not legal, expected a{rule} up to {}",
            self.kind, self.full
        ))
    }
}
