//! What `blocks` is told.

use std::collections::BTreeMap;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::jobs::prune::ReconstructOptions;
use minitron_core::error::{Error, Result};
use minitron_core::plan::Bytes;
use minitron_core::registry::PluginSpec;

/// Options of `blocks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct BlocksOptions {
    /// Folder or hub id.
    pub model: String,
    /// Its scores: they say which units a smaller part keeps.
    #[arg(long)]
    pub scores: String,
    /// Shares of a part's size to try; 0 leaves the part out, where the family can say so.
    #[arg(long, value_delimiter = ',', default_values_t = Self::default().shares)]
    pub shares: Vec<f64>,
    /// Layers may differ: a Llama's student is a DeciLM with block_configs, for llama.cpp and vLLM,
    /// not for stock transformers.
    #[arg(long)]
    pub layers_apart: bool,
    /// Time every part at every size too, on one batch of the text.
    #[arg(long)]
    pub time: bool,
    /// An axis with parameters of its own, `mlp:multiple_of=64` [default: all axes]
    #[arg(long = "axis")]
    #[schemars(extend("plugins" = ["axis"]))]
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim.
    #[arg(skip)]
    pub by: BTreeMap<String, String>,
    /// Memory that the process may take, `1GiB`: what is held of the text waits beside the output.
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub max_memory: Option<Bytes>,
    /// Take scores of another model, with a warning.
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub any_model: bool,
    /// Reconstructions and their text.
    #[serde(flatten)]
    #[command(flatten)]
    pub reconstruction: ReconstructOptions,
}

impl Default for BlocksOptions {
    fn default() -> Self {
        BlocksOptions {
            model: String::new(),
            scores: String::new(),
            shares: vec![0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0],
            layers_apart: false,
            time: false,
            axes: Vec::new(),
            by: BTreeMap::new(),
            max_memory: None,
            any_model: false,
            reconstruction: ReconstructOptions::default(),
        }
    }
}

impl BlocksOptions {
    /// What can be refused by looking at the options alone.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(share) = self
            .shares
            .iter()
            .find(|share| !(0.0..1.0).contains(*share))
        {
            return Err(Error::Recipe(format!(
                "shares: expected at least 0, below 1, got {share}"
            )));
        }
        if self.shares.is_empty() {
            return Err(Error::Recipe("shares: expected at least one".into()));
        }
        if self.reconstruction.data.is_empty() {
            return Err(Error::Recipe(
                "data: blocks are measured on text: give --data".into(),
            ));
        }
        Ok(())
    }
}
