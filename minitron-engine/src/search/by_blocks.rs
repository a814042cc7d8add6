//! Candidates whose layers differ: the best plans by what smaller parts of layers were measured to
//! cost, which add up only about.

use std::time::Instant;

use super::grid::{Candidate, Survey};
use super::options::{Found, SearchOptions};
use crate::jobs::blocks::blocks_path;
use crate::jobs::context::{Context, SizeRequest};
use crate::jobs::identity::identity_of;
use crate::jobs::prune::planning::{blocks_of, scores_of, space_of};
use crate::jobs::score::scores_path;
use minitron_core::contract::Allocator;
use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockScores, Plan, Rankings};
use minitron_core::spec::{DEPTH, ModelSpec};

impl SearchOptions {
    /// The best plans within the budget, best first by the sum of what their parts cost.
    ///
    /// # Errors
    /// `Recipe` for what does not go together, `Plan` where nothing keeps the budget.
    pub(super) fn survey_blocks(&self, context: &Context, blocks: &str) -> Result<Found> {
        let (_, target) = self.budget()?;
        self.refuse_beside_blocks()?;
        let begin = Instant::now();
        let folder = context.open_as(&self.model, self.layers_apart)?;
        let own = identity_of(&folder)?;
        let (axes, any_model) = (context.axes(&self.axes)?, self.teacher_options.any_model);
        let space = space_of(&folder.spec, &axes, self.square)?;
        let groups = context.groups(&axes, &folder.spec)?;
        let scores = scores_of(context, &scores_path(&self.scores)?, &own, any_model)?;
        let mut rankings = Rankings::new(&scores, &groups, &self.by)?;
        let blocks = blocks_of(context, &blocks_path(blocks)?, &own, any_model)?;
        let n_points = n_points(&blocks);
        rankings.blocks = Some(blocks);
        let wanted = SizeRequest {
            params: self.params.clone(),
            memory: self.memory.clone(),
            seq_len: self.kv_seq_len,
            by_blocks: true,
            bytes_per_param: folder.n_bytes() as f64 / folder.spec.n_params().max(1) as f64,
            ..SizeRequest::default()
        };
        let asked = context
            .defaults
            .allocator(&wanted)
            .with("n_plans", self.candidates);
        let allocator = context.registry.build::<dyn Allocator>(&asked)?;
        let plans = allocator.allocate(&space, &rankings, &folder.spec)?;
        let candidates: Vec<Candidate> = plans
            .iter()
            .map(|plan| candidate(plan, &folder.spec))
            .collect();
        let seconds = begin.elapsed().as_secs_f64();
        let n_found = candidates.len() as u64;
        let survey = Survey {
            n_points,
            n_within: n_found,
            n_legal: n_found,
            seconds,
            points_per_second: n_points as f64 / seconds.max(1e-9),
        };
        Ok(Found {
            spec: folder.spec,
            space,
            candidates,
            survey,
            target,
        })
    }

    fn refuse_beside_blocks(&self) -> Result<()> {
        let has_grid = !self.grid.is_empty() || !self.size.is_empty() || !self.free.is_empty();
        if has_grid || self.filter.is_some() {
            return Err(Error::Recipe(
                "blocks: the candidates are the best plans by block scores; leave grid, size, \
                 free and filter out"
                    .into(),
            ));
        }
        if self.params.is_none() && self.memory.is_none() {
            return Err(Error::Recipe(
                "blocks: say how large a candidate may be: params or memory".into(),
            ));
        }
        if self.scores.is_empty() {
            return Err(Error::Recipe(
                "scores: needed beside blocks, to say which units a part keeps".into(),
            ));
        }
        Ok(())
    }
}

fn candidate(plan: &Plan, spec: &ModelSpec) -> Candidate {
    let layers = plan
        .kept
        .get(DEPTH)
        .filter(|layers| layers.len() < spec.n_layers());
    Candidate {
        sizes: plan.sizes(),
        layers: layers.cloned(),
        n_params: spec.n_params_of(&plan.size_map(spec)),
        imbalance: 0.0,
    }
}

/// Combinations of all blocks' sizes.
fn n_points(blocks: &BlockScores) -> u64 {
    let counts = blocks
        .blocks
        .iter()
        .map(|block| block.choices.len() as u64 + 1);
    counts.fold(1, u64::saturating_mul)
}
