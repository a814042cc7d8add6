//! A student as a model folder: config, weights, tokenizer, modules and card.

use std::path::Path;

use super::card::{Before, Card, Fact};
use minitron_core::checkpoint::{Config, TensorSource, WriteOptions, write_model};
use minitron_core::error::Result;
use minitron_core::prune::ModuleChanges;
use minitron_core::spec::ModelSpec;

/// A student's folder but for its plan.
pub(crate) struct Written<'a> {
    pub config: &'a Config,
    pub spec: &'a ModelSpec,
    pub tensors: &'a dyn TensorSource,
    /// Where its companions are.
    pub from: &'a Path,
    pub modules: &'a ModuleChanges,
    pub card: &'a Card,
    pub before: Option<&'a Before>,
    pub measured: &'a [Fact],
    pub options: WriteOptions,
}

impl Written<'_> {
    /// Into an existing folder.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (from, options) = (Some(self.from), self.options);
        write_model(dir, self.config, self.tensors, from, options)?;
        self.modules.write(dir)?;
        self.card.write(dir, self.spec, self.before, self.measured)
    }
}
