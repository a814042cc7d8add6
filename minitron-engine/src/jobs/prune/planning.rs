//! Which units stay: a finished plan, one round of ranking and allocating, or several with scoring
//! in between.

use std::collections::BTreeMap;
use std::path::Path;

use super::options::PruneOptions;
use crate::jobs::blocks::blocks_path;
use crate::jobs::context::Context;
use crate::jobs::identity::Artefact;
use crate::jobs::score::{metrics, scores_path};
use crate::score::{self, Metric};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{Identity, TensorSource};
use minitron_core::contract::{Allocator, Axis};
use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockScores, Explained, Plan, Rankings, Space, schedule};
use minitron_core::prune::Student;
use minitron_core::spec::{
    DEPTH, HIDDEN, MLP, ModelFolder, ModelSpec, PruneGroup, Sizes, split_dim,
};
use minitron_core::windows::Windows;

/// The plan, what ranked the units, and where scores decided it, why.
pub(crate) struct Decision {
    pub plan: Plan,
    /// Of the source's units; none where a finished plan came without scores.
    pub rankings: Option<Rankings>,
    pub explained: BTreeMap<String, Explained>,
}

/// Decides as the options ask.
pub(crate) fn decide(
    context: &Context,
    options: &PruneOptions,
    (folder, own): (&ModelFolder, &Identity),
    windows: Option<&Windows>,
) -> Result<Decision> {
    let _span = tracing::info_span!("plan").entered();
    let spec = &folder.spec;
    let axes = context.axes(&options.axes)?;
    let space = space_of(spec, &axes, options.square)?;
    let groups = context.groups(&axes, spec)?;
    let rankings = rankings_of(context, options, own, &groups)?;
    if let Some(path) = &options.plan {
        let (plan, source) = Plan::load_with_source(path)?;
        Artefact {
            what: "a plan",
            path,
            of: source.as_ref(),
        }
        .check(context, own, options.any_model)?;
        let plan = plan.checked(&space, spec)?;
        return Ok(Decision {
            plan,
            rankings,
            explained: BTreeMap::new(),
        });
    }
    let rankings = rankings.unwrap_or_default();
    let plan = allocate(context, options, folder, (&space, &rankings))?;
    if options.rounds > 1 {
        let rounds = Rounds {
            context,
            options,
            folder,
            axes: &axes,
            windows: text(windows)?,
        };
        let plan = rounds.plan(&space, &plan.sizes(), &rankings)?;
        return Ok(Decision {
            plan,
            rankings: Some(rankings),
            explained: BTreeMap::new(),
        });
    }
    let mut explained = plan.explain(&rankings, spec, options.bootstrap)?;
    if rankings.blocks.is_some() {
        // What layers cost decided, and no ranking of them.
        explained.remove(DEPTH);
    }
    Ok(Decision {
        plan,
        rankings: Some(rankings),
        explained,
    })
}

/// What plans are made by, where scores are given.
fn rankings_of(
    context: &Context,
    options: &PruneOptions,
    own: &Identity,
    groups: &[PruneGroup],
) -> Result<Option<Rankings>> {
    let Some(scores) = &options.scores else {
        return Ok(None);
    };
    let scores = scores_of(context, &scores_path(scores)?, own, options.any_model)?;
    let mut rankings = Rankings::new(&scores, groups, &options.by)?;
    if let Some(path) = &options.blocks {
        let table = |path: &str| blocks_of(context, &blocks_path(path)?, own, options.any_model);
        let mut blocks = table(path)?;
        if let Some(times) = &options.times {
            blocks.take_times(&table(times)?)?;
        }
        rankings.blocks = Some(blocks);
    }
    Ok(Some(rankings))
}

/// The scores in a file, where they are of this model.
pub(crate) fn scores_of(
    context: &Context,
    path: &Path,
    own: &Identity,
    any_model: bool,
) -> Result<Scores> {
    let scores = Scores::load(path)?;
    Artefact {
        what: "scores",
        path,
        of: scores.model.as_ref(),
    }
    .check(context, own, any_model)?;
    Ok(scores)
}

/// The block scores in a file, where they are of this model.
pub(crate) fn blocks_of(
    context: &Context,
    path: &Path,
    own: &Identity,
    any_model: bool,
) -> Result<BlockScores> {
    let blocks = BlockScores::load(path)?;
    Artefact {
        what: "block scores",
        path,
        of: blocks.model.as_ref(),
    }
    .check(context, own, any_model)?;
    Ok(blocks)
}

pub(crate) fn space_of(spec: &ModelSpec, axes: &[Box<dyn Axis>], square: bool) -> Result<Space> {
    let space = Space::new(spec, axes)?;
    Ok(if square { space.squared(spec) } else { space })
}

fn text(windows: Option<&Windows>) -> Result<&Windows> {
    let message = "rounds: scoring between rounds needs calibration text: give --data";
    windows.ok_or_else(|| Error::Recipe(message.into()))
}

fn allocate(
    context: &Context,
    options: &PruneOptions,
    folder: &ModelFolder,
    (space, rankings): (&Space, &Rankings),
) -> Result<Plan> {
    let wanted = options.wanted(folder)?;
    let asked = match &options.allocator {
        Some(allocator) => allocator.clone(),
        None => context.defaults.allocator(&wanted),
    };
    let allocator = context.registry.build::<dyn Allocator>(&asked)?;
    let plans = allocator.allocate(space, rankings, &folder.spec)?;
    let Some(best) = plans.into_iter().next() else {
        return Err(broken(asked.tag, "gave no plan".into()));
    };
    best.checked(space, &folder.spec).map_err(|e| match e {
        Error::Plan(message) => broken(asked.tag, message),
        other => other,
    })
}

/// An allocator that does not keep its contract.
fn broken(tag: String, message: String) -> Error {
    Error::Plugin {
        tag,
        origin: "allocator".into(),
        message,
    }
}

/// Iterative importance (arXiv 2407.14679, section 2.3): along a linear schedule of sizes, each
/// round ranks the student of the round before by scores of its own.
struct Rounds<'a> {
    context: &'a Context<'a>,
    options: &'a PruneOptions,
    folder: &'a ModelFolder,
    axes: &'a [Box<dyn Axis>],
    windows: &'a Windows,
}

impl Rounds<'_> {
    /// One plan on the source that all rounds add up to.
    fn plan(&self, space: &Space, target: &Sizes, rankings: &Rankings) -> Result<Plan> {
        let (source, spec) = (&self.folder.checkpoint.tensors, &self.folder.spec);
        let n_rounds = self.options.rounds;
        if let Some(dim) = target.keys().find(|name| split_dim(name).1.is_some()) {
            let message = format!(
                "rounds: `{dim}` has a size of its own, and rounds give all layers one; plan it in \
                 one round"
            );
            return Err(Error::Recipe(message));
        }
        let full = space.full();
        let sizes = schedule(&full, target, 1, n_rounds, space);
        let mut plan = space.plan(&sizes, rankings, spec)?;
        for round in 2..=n_rounds {
            let _span = tracing::info_span!("round", round).entered();
            let student = Student::new(source, spec, &plan)?;
            let sizes = schedule(&full, target, round, n_rounds, space);
            let later = self.round(&student.view, &student.spec, (sizes, space))?;
            plan = plan.compose(&later, spec);
        }
        plan.checked(space, spec)
    }

    fn round(
        &self,
        source: &dyn TensorSource,
        spec: &ModelSpec,
        (mut sizes, of_source): (Sizes, &Space),
    ) -> Result<Plan> {
        let groups = self.context.groups(self.axes, spec)?;
        let tokenizer = self.context.tokenizer(self.folder)?;
        let pruned = (spec, groups.as_slice());
        let mut inputs = self
            .context
            .score_inputs(source, pruned, &tokenizer, self.windows);
        inputs.ranks = self.context.ranks;
        inputs.batch_size = self.options.reconstruction.batch_size.max(1);
        inputs.max_memory = self.options.max_memory.map(|bytes| bytes.0);
        let mut metrics = metrics(self.context, &self.options.metrics)?;
        if self.options.metrics.is_empty() {
            // The defaults serve every axis; those named here may be fewer.
            let scores_some = |m: &Metric| groups.iter().any(|g| m.importance.need(g).is_some());
            metrics.retain(scores_some);
        }
        let scores = score::score(&inputs, metrics)?;
        let rankings = Rankings::new(&scores, &groups, &self.options.by)?;
        let mut space = space_of(spec, self.axes, self.options.square)?;
        // What is legal for the source is legal on the way there, whatever steps a narrower model
        // would have.
        for axis in &mut space.axes {
            if ![HIDDEN, MLP].contains(&axis.kind.as_str()) {
                continue;
            }
            if let Ok(whole) = of_source.axis(&axis.kind) {
                axis.step = whole.step.min(axis.step);
            }
        }
        // A student with a key/value head for each query head has no such axis any more.
        sizes.retain(|kind, _| space.axis(kind).is_ok());
        space.plan(&sizes, &rankings, spec)
    }
}
