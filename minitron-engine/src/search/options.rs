//! What is searched, and how the candidates are found.

use std::collections::BTreeMap;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grid::{Candidate, Grid, GridAxis, Survey, Within};
use super::predicate::Predicate;
use super::record::SearchTarget;
use super::size_list::SizeList;
use crate::data::WindowSampling;
use crate::jobs::clients::warn_of_many;
use crate::jobs::context::Context;
use crate::jobs::inspect::open;
use crate::jobs::prune::options::kind_of;
use crate::jobs::train::options::TrainingOptions;
use crate::jobs::train::teacher_source::TeacherOptions;
use minitron_core::error::{Error, Result};
use minitron_core::mixers::MAMBA_HEAD_DIM;
use minitron_core::plan::{Bytes, Space, Target, parse_budget, parse_bytes};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, KV_HEADS, MLP, ModelSpec, ROPE_PAIRS, Sizes};

/// Options of `search`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct SearchOptions {
    /// The original, which is pruned and teaches: folder or hub id.
    #[schemars(extend("by_content" = true))]
    pub model: String,
    /// Its scores.
    #[arg(long, required_unless_present = "dry_run", default_value = "")]
    #[schemars(extend("by_content" = true))]
    pub scores: String,
    /// Parameters of a candidate, `4B` or `4B+-5%`.
    #[arg(long)]
    pub params: Option<String>,
    /// Most that weights and key/value cache may take, `8GiB`; least is 5 % less.
    #[arg(long)]
    pub memory: Option<String>,
    /// Tokens per sequence of the key/value cache [default: the model's positions]
    #[arg(long, requires = "memory")]
    pub kv_seq_len: Option<usize>,
    /// What smaller parts of layers cost, as `blocks` measured it: the candidates are then the
    /// best plans by it, whose layers differ.
    #[arg(long)]
    #[schemars(extend("by_content" = true))]
    pub blocks: Option<String>,
    /// Layers may differ: a Llama's student is a DeciLM with block_configs, for llama.cpp and vLLM,
    /// not for stock transformers.
    #[arg(long)]
    pub layers_apart: bool,
    /// Sizes to try by kind (`hidden`, `mlp`, `heads`, `kv_heads`, `layers`), and `mlp_factor`,
    /// multiples of the hidden width; where empty, all legal widths and heads.
    #[arg(skip)]
    pub grid: BTreeMap<String, SizeList>,
    /// The same as `grid`, as `prune` calls it.
    #[arg(skip)]
    pub size: BTreeMap<String, SizeList>,
    /// An axis that the default grid has too: depth, kv_heads, rope_pairs (head_dim in pairs),
    /// mamba_head_dim.
    #[arg(long)]
    pub free: Vec<String>,
    /// What a candidate must answer with yes: `hidden % 128 == 0 && mlp >= 2 * hidden`.
    #[arg(long)]
    pub filter: Option<String>,
    /// Keep hidden = heads x head_dim: llama.cpp's Nemotron and optimum's Llama want it.
    #[arg(long)]
    pub square: bool,
    /// Most candidates, the most evenly shrunk ones.
    #[arg(long, default_value_t = Self::default().candidates)]
    pub candidates: usize,
    /// How many of them are trained, the best ones before training [default: all]
    #[arg(long)]
    pub screen: Option<usize>,
    /// Stretches of training, after each of which some leave.
    #[arg(long, default_value_t = Self::default().rungs)]
    pub rungs: usize,
    /// Share that stays after each.
    #[arg(long, default_value_t = Self::default().keep_share)]
    pub keep_share: f64,
    /// An axis with parameters of its own, `mlp:multiple_of=64` [default: all axes]
    #[arg(long = "axis")]
    #[schemars(extend("plugins" = ["axis"]))]
    pub axes: Vec<PluginSpec>,
    /// Which metric decides, by kind of dim.
    #[arg(skip)]
    pub by: BTreeMap<String, String>,
    /// How every candidate is repaired in closed form: `auto`, or `name:key=value`, several in
    /// their order [default: the plain cut]
    #[arg(long, alias = "heal")]
    #[serde(alias = "heal")]
    #[schemars(extend("plugins" = ["reconstruction"]))]
    pub reconstruct: Vec<PluginSpec>,
    /// Windows of the training text that reconstructions look at.
    #[arg(long, default_value_t = Self::default().reconstruct_samples)]
    pub reconstruct_samples: usize,
    /// Which of them: `spread` over the text, or the `first` ones.
    #[arg(long, default_value = "spread")]
    pub reconstruct_sampling: WindowSampling,
    /// Memory for candidates that learn side by side [default: half of what is free]
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub max_memory: Option<Bytes>,
    /// How the original is asked.
    #[serde(flatten)]
    #[command(flatten)]
    pub teacher_options: TeacherOptions,
    /// Training of a candidate that stays to the end.
    #[serde(flatten)]
    #[command(flatten)]
    pub training: TrainingOptions,
}

impl Default for SearchOptions {
    fn default() -> Self {
        SearchOptions {
            model: String::new(),
            scores: String::new(),
            params: None,
            memory: None,
            kv_seq_len: None,
            blocks: None,
            layers_apart: false,
            grid: BTreeMap::new(),
            size: BTreeMap::new(),
            free: Vec::new(),
            filter: None,
            square: false,
            candidates: 16,
            screen: None,
            rungs: 3,
            keep_share: 0.5,
            axes: Vec::new(),
            by: BTreeMap::new(),
            reconstruct: Vec::new(),
            reconstruct_samples: 128,
            reconstruct_sampling: WindowSampling::Spread,
            max_memory: None,
            teacher_options: TeacherOptions::default(),
            training: TrainingOptions::default(),
        }
    }
}

/// What sizes alone say.
pub(super) struct Found {
    pub spec: ModelSpec,
    pub space: Space,
    pub candidates: Vec<Candidate>,
    pub survey: Survey,
    pub target: SearchTarget,
}

/// Sizes that are tried along an axis of all legal sizes; more are thinned out evenly.
const MAX_PER_AXIS: usize = 64;
/// Share of a memory ceiling that may be left unused.
const SLACK: f64 = 0.05;

impl SearchOptions {
    /// The candidates, most evenly shrunk first.
    ///
    /// # Errors
    /// `Recipe` for what cannot be meant, `Plan` where nothing on the grid is legal and within the
    /// budget.
    pub(super) fn survey(&self, context: &Context) -> Result<Found> {
        if let Some(blocks) = &self.blocks {
            return self.survey_blocks(context, blocks);
        }
        let (spec, weights) = open(context, &self.model)?;
        let mut space = Space::new(&spec, &context.axes(&self.axes)?)?;
        if self.square {
            space = space.squared(&spec);
        }
        let bytes_per_param = weights.n_bytes as f64 / spec.n_params().max(1) as f64;
        let (within, target) = self.budget()?;
        let cost = |n_params: u64, sizes: &[usize]| match target.memory_bytes {
            Some(_) => self.bytes_of(&spec, n_params, bytes_per_param, &by_kind(&space, sizes)),
            None => n_params,
        };
        let filter = self.filter.as_deref().map(Predicate::parse).transpose();
        let filter = filter.map_err(|e| e.at("filter"))?;
        let keep = |sizes: &Sizes, n_params: u64| match &filter {
            Some(filter) => ask(filter, sizes, n_params),
            None => Ok(true),
        };
        let grid = self.grid(&space)?;
        let (mut candidates, survey) = grid.survey(&spec, &space, &cost, (within, &keep))?;
        if candidates.is_empty() {
            return Err(Error::Plan(format!(
                "search: none of {} points is legal and within the budget ({} are within); widen \
                 the tolerance, the grid or the filter",
                survey.n_points, survey.n_within
            )));
        }
        let n_most = self.candidates;
        if candidates.len() > n_most {
            let n = candidates.len();
            let message = format!("search: {n_most} candidates of {n}, those shrunk most evenly");
            context.progress.note(&message);
            candidates.truncate(n_most.max(1));
        }
        let sizes = candidates.iter().map(|candidate| &candidate.sizes);
        warn_of_many(context, &spec, sizes);
        Ok(Found {
            spec,
            space,
            candidates,
            survey,
            target,
        })
    }

    /// Of weights as stored, and a sequence's key/value cache.
    pub(super) fn bytes_of(
        &self,
        spec: &ModelSpec,
        n_params: u64,
        bytes_per_param: f64,
        sizes: &Sizes,
    ) -> u64 {
        let seq_len = self.kv_seq_len.unwrap_or(spec.options.max_positions);
        let weights = (n_params as f64 * bytes_per_param).ceil() as u64;
        weights.saturating_add(spec.kv_cache_bytes_at(sizes, seq_len, 1))
    }

    pub(super) fn budget(&self) -> Result<(Within, SearchTarget)> {
        let mut target = SearchTarget::default();
        match (&self.params, &self.memory) {
            (Some(_), Some(_)) => Err(Error::Recipe("params, memory: give one of the two".into())),
            (Some(params), None) => {
                let Target {
                    n_params,
                    tolerance,
                } = parse_budget(params)?;
                (target.params, target.tolerance) = (Some(n_params), tolerance);
                Ok((Within::around(n_params, tolerance), target))
            }
            (None, Some(memory)) => {
                let most = parse_bytes(memory)?;
                (target.memory_bytes, target.tolerance) = (Some(most), SLACK);
                let least = (most as f64 * (1.0 - SLACK)) as u64;
                Ok((Within { least, most }, target))
            }
            (None, None) if self.grid.is_empty() && self.size.is_empty() => Err(Error::Recipe(
                "search: say how large a candidate may be: params, memory, or a grid".into(),
            )),
            (None, None) => {
                let (least, most) = (0, u64::MAX);
                Ok((Within { least, most }, target))
            }
        }
    }

    /// Sizes to try by kind, under either name.
    ///
    /// # Errors
    /// `Recipe` for a kind with two lists.
    pub(crate) fn lists(&self) -> Result<BTreeMap<&str, &SizeList>> {
        let mut lists = BTreeMap::new();
        for (kind, sizes) in self.grid.iter().chain(&self.size) {
            let before = lists.insert(kind_of(kind), sizes);
            if before.is_some_and(|before| before != sizes) {
                return Err(Error::Recipe(format!(
                    "grid, size: `{kind}` is given twice; give its sizes in one list"
                )));
            }
        }
        Ok(lists)
    }

    fn grid(&self, space: &Space) -> Result<Grid> {
        let lists = self.lists()?;
        if lists.is_empty() {
            return self.all_legal(space);
        }
        let mut axes = Vec::with_capacity(lists.len());
        for (kind, sizes) in lists {
            if kind == "mlp_factor" {
                axes.push(GridAxis::MlpFactors(sizes.0.clone()));
            } else {
                space.axis(kind)?;
                axes.push(GridAxis::Sizes(kind.to_owned(), sizes.whole(kind)?));
            }
        }
        Grid::new(axes)
    }

    /// Widths and heads, and what is freed: at one size, width pruning keeps more (best practice
    /// 4).
    fn all_legal(&self, space: &Space) -> Result<Grid> {
        for kind in &self.free {
            space.axis(kind)?;
        }
        let mut axes = Vec::new();
        for axis in &space.axes {
            let on_request = [DEPTH, KV_HEADS, ROPE_PAIRS, MAMBA_HEAD_DIM];
            let is_on_request = on_request.contains(&axis.kind.as_str());
            if is_on_request && !self.free.contains(&axis.kind) {
                continue;
            }
            let legal = axis.legal();
            // The MLP's width is what meets a budget most closely.
            let most = if axis.kind == MLP {
                usize::MAX
            } else {
                MAX_PER_AXIS
            };
            let stride = legal.len().div_ceil(most).max(1);
            let sizes = legal.into_iter().rev().step_by(stride).collect();
            axes.push(GridAxis::Sizes(axis.kind.clone(), sizes));
        }
        Grid::new(axes)
    }
}

/// Sizes in the order of the space's axes, by kind.
fn by_kind(space: &Space, sizes: &[usize]) -> Sizes {
    let kinds = space.axes.iter().map(|axis| axis.kind.clone());
    kinds.zip(sizes.iter().copied()).collect()
}

fn ask(filter: &Predicate, sizes: &Sizes, n_params: u64) -> Result<bool> {
    let answer = filter.holds(&|name| match name {
        "n_params" => Some(n_params as f64),
        "layers" => sizes.get(DEPTH).map(|&size| size as f64),
        kind => sizes.get(kind).map(|&size| size as f64),
    });
    answer.map_err(|e| e.at("filter"))
}
