//! From block scores to items of a knapsack, and from what it chose to a plan.

use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockChoice, BlockChoices, BlockScores, Plan, Rankings, Space};
use minitron_core::spec::{DEPTH, ModelSpec, SizeMap, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::budget::{Measure, Picked};
use super::solve::{Item, Weighed};

/// The blocks that are chosen from, with what is held beside them.
pub(super) struct Table<'a> {
    blocks: Vec<&'a BlockChoices>,
    score: fn(&BlockChoice) -> Option<f64>,
    hold: Sizes,
}

/// A number of a measured block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockScore {
    /// KL where the model has logits, else the error.
    #[default]
    Auto,
    /// KL from the source, nats per token.
    Kl,
    /// Σ ‖h − h'‖² / Σ ‖h‖² of last hidden states.
    Error,
}

impl<'a> Table<'a> {
    pub fn new(
        scores: &'a BlockScores,
        by: BlockScore,
        hold: &Sizes,
        space: &Space,
    ) -> Result<Self> {
        for (kind, &size) in hold {
            space.axis_beside(kind, hold)?.check(size)?;
        }
        let blocks = scores
            .blocks
            .iter()
            .filter(|block| !block.choices.is_empty());
        let blocks: Vec<&BlockChoices> = blocks.collect();
        let has_kl = blocks
            .iter()
            .flat_map(|block| &block.choices)
            .all(|choice| choice.kl.is_some());
        let by_kl = match by {
            BlockScore::Auto => has_kl,
            BlockScore::Kl if !has_kl => {
                let message = "knapsack: score: these block scores have no KL, since the model has \
                               no logits; take error";
                return Err(Error::Recipe(message.into()));
            }
            BlockScore::Kl => true,
            BlockScore::Error => false,
        };
        Ok(Table {
            blocks,
            score: if by_kl {
                |choice| choice.kl
            } else {
                |choice| Some(choice.error)
            },
            hold: hold.clone(),
        })
    }

    /// Every block's choices with what they save of each measure, and what they cost in quality.
    pub fn items(&self, measures: &[&Measure], spec: &ModelSpec) -> Result<Vec<Item>> {
        let whole = self.sizes(spec, &[]);
        let mut items = Vec::with_capacity(self.blocks.len());
        for &block in &self.blocks {
            let mut choices = Vec::with_capacity(block.choices.len());
            for choice in &block.choices {
                let sizes = self.sizes(spec, &[(block, choice)]);
                let saved = measures.iter().map(|measure| {
                    measure.of(&whole, &[]) - measure.of(&sizes, &[(block, choice)])
                });
                choices.push(Weighed {
                    // A part that was measured to help costs nothing.
                    score: (self.score)(choice).unwrap_or(f64::INFINITY).max(0.0),
                    saved: saved.map(|saved| saved.max(0.0)).collect(),
                });
            }
            items.push(Item(choices));
        }
        Ok(items)
    }

    /// What a solution names, by block; none keeps it.
    pub fn picked(&self, choices: &[Option<usize>]) -> Vec<Picked<'a>> {
        let mut picked = Vec::new();
        for (&block, choice) in self.blocks.iter().zip(choices) {
            let choice = choice.and_then(|choice| block.choices.get(choice));
            picked.extend(choice.map(|choice| (block, choice)));
        }
        picked
    }

    /// Sizes and layers of a model with some blocks smaller.
    pub fn sizes(&self, spec: &ModelSpec, picked: &[Picked]) -> SizeMap {
        let mut by_name = self.hold.clone();
        let mut layers: Vec<usize> = (0..spec.n_layers()).collect();
        for (block, choice) in picked {
            by_name.extend(choice.sizes.clone());
            if choice.is_dropped() {
                layers.retain(|&layer| layer != block.layer);
            }
        }
        SizeMap {
            by_name,
            layers: Some(layers),
        }
    }

    /// Whether a layer is left.
    pub fn has_layers(&self, spec: &ModelSpec, choices: &[Option<usize>]) -> bool {
        let sizes = self.sizes(spec, &self.picked(choices));
        sizes.layers.is_none_or(|layers| !layers.is_empty())
    }

    pub fn plan(
        &self,
        space: &Space,
        rankings: &Rankings,
        spec: &ModelSpec,
        picked: &[Picked],
    ) -> Result<Plan> {
        let SizeMap { by_name, layers } = self.sizes(spec, picked);
        let mut plan = space.plan(&by_name, rankings, spec)?;
        if let Some(layers) = layers.filter(|_| spec.dims.contains_key(DEPTH)) {
            plan.kept.insert(DEPTH.to_owned(), layers);
        }
        Ok(plan)
    }
}
