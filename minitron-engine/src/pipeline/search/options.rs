//! What is searched, and how the candidates are found.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::clients::warn_of_many;
use super::super::context::Context;
use super::super::inspect::open;
use super::super::prune_options::kind_of;
use super::super::teacher_source::TeacherOptions;
use super::super::training_options::TrainingOptions;
use crate::search::{Candidate, Grid, GridAxis, Predicate, Survey, Within};
use minitron_core::contract::Axis;
use minitron_core::error::{Error, Result};
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
    /// Sizes to try by kind (`hidden`, `mlp`, `heads`, `kv_heads`, `layers`), and `mlp_factor`,
    /// multiples of the hidden width; where empty, all legal widths and heads.
    #[arg(skip)]
    pub grid: BTreeMap<String, SizeList>,
    /// The same as `grid`, as `prune` calls it.
    #[arg(skip)]
    pub size: BTreeMap<String, SizeList>,
    /// An axis that the default grid has too: depth, kv_heads, rope_pairs (head_dim in pairs).
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
    /// A reconstruction of every candidate, `name:key=value`; several are applied in order.
    #[arg(long)]
    #[schemars(extend("plugins" = ["reconstruction"]))]
    pub heal: Vec<PluginSpec>,
    /// Windows of the training text that reconstructions look at.
    #[arg(long, default_value_t = Self::default().reconstruct_samples)]
    pub reconstruct_samples: usize,
    /// Memory for candidates that learn side by side [default: half of what is free]
    #[arg(long)]
    #[schemars(extend("decides" = false))]
    pub max_memory: Option<Bytes>,
    /// How the original is asked.
    #[serde(flatten)]
    #[command(flatten)]
    pub asked: TeacherOptions,
    /// Training of a candidate that stays to the end.
    #[serde(flatten)]
    #[command(flatten)]
    pub setup: TrainingOptions,
}

impl Default for SearchOptions {
    fn default() -> Self {
        SearchOptions {
            model: String::new(),
            scores: String::new(),
            params: None,
            memory: None,
            kv_seq_len: None,
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
            heal: Vec::new(),
            reconstruct_samples: 128,
            max_memory: None,
            asked: TeacherOptions::default(),
            setup: TrainingOptions::default(),
        }
    }
}

/// Sizes to try: `[2560, 3072]`, `"24,32,48"`, `"29-32"` (both ends), `"4096-6144/512"` (in steps).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberListOrText")]
pub struct SizeList(pub Vec<f64>);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum NumberListOrText {
    One(f64),
    List(Vec<f64>),
    Text(String),
}

impl TryFrom<NumberListOrText> for SizeList {
    type Error = Error;
    fn try_from(written: NumberListOrText) -> Result<Self> {
        match written {
            NumberListOrText::One(size) => Ok(SizeList(vec![size])),
            NumberListOrText::List(sizes) => Ok(SizeList(sizes)),
            NumberListOrText::Text(text) => text.parse(),
        }
    }
}

/// Sizes of one range: more are a slip of the pen.
const MAX_SIZES: usize = 4096;

impl FromStr for SizeList {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::Recipe(format!(
                "expected sizes such as 24,32,48 or 29-32 or 4096-6144/512, got `{text}`"
            ))
        };
        let mut sizes = Vec::new();
        for word in text.split(',').map(str::trim) {
            let Some((from, to)) = word.split_once('-') else {
                sizes.push(word.parse::<f64>().map_err(|_| wrong())?);
                continue;
            };
            let (to, step) = to.split_once('/').unwrap_or((to, "1"));
            let whole = |word: &str| word.trim().parse::<u32>().map_err(|_| wrong());
            let (from, to, step) = (whole(from)?, whole(to)?, whole(step)?);
            if step == 0 || from > to || ((to - from) / step) as usize >= MAX_SIZES {
                return Err(wrong());
            }
            sizes.extend((from..=to).step_by(step as usize).map(f64::from));
        }
        Ok(SizeList(sizes))
    }
}

/// What sizes alone say.
pub(super) struct Found {
    pub spec: ModelSpec,
    pub space: Space,
    pub candidates: Vec<Candidate>,
    pub survey: Survey,
    pub target: super::record::Target,
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
        let (spec, weights) = open(context, &self.model)?;
        let axes: Vec<Box<dyn Axis>> = context.axes(&self.axes)?;
        let space = Space::new(&spec, &axes)?;
        let space = if self.square {
            space.squared(&spec)
        } else {
            space
        };
        let bytes_per_param = weights.n_bytes as f64 / spec.n_params().max(1) as f64;
        let (within, target) = self.budget()?;
        let is_memory = target.memory_bytes.is_some();
        let cost = |n_params: u64, sizes: &[usize]| {
            if !is_memory {
                return n_params;
            }
            self.bytes_of(&spec, n_params, bytes_per_param, || {
                space
                    .axes
                    .iter()
                    .map(|axis| axis.kind.clone())
                    .zip(sizes.iter().copied())
                    .collect()
            })
        };
        let filter = self
            .filter
            .as_deref()
            .map(Predicate::parse)
            .transpose()
            .map_err(|e| e.at("filter"))?;
        let keep = |sizes: &Sizes, n_params: u64| match &filter {
            Some(filter) => ask(filter, sizes, n_params),
            None => Ok(true),
        };
        let (mut candidates, survey) =
            self.grid(&space)?
                .survey(&spec, &space, &cost, (within, &keep))?;
        if candidates.is_empty() {
            return Err(Error::Plan(format!(
                "search: none of {} points is legal and within the budget ({} are within); widen \
                 the tolerance, the grid or \
                 the filter",
                survey.n_points, survey.n_within
            )));
        }
        if candidates.len() > self.candidates {
            let message = format!(
                "search: {} candidates of {}, those shrunk most evenly",
                self.candidates,
                candidates.len()
            );
            context.progress.note(&message);
            candidates.truncate(self.candidates.max(1));
        }
        warn_of_many(
            context,
            &spec,
            candidates.iter().map(|candidate| &candidate.sizes),
        );
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
        sizes: impl FnOnce() -> Sizes,
    ) -> u64 {
        let seq_len = self.kv_seq_len.unwrap_or(spec.options.max_positions);
        let weights = (n_params as f64 * bytes_per_param).ceil() as u64;
        weights.saturating_add(spec.kv_cache_bytes_at(&sizes(), seq_len, 1))
    }

    fn budget(&self) -> Result<(Within, super::record::Target)> {
        let mut target = super::record::Target::default();
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
                Ok((
                    Within {
                        least: (most as f64 * (1.0 - SLACK)) as u64,
                        most,
                    },
                    target,
                ))
            }
            (None, None) if self.grid.is_empty() && self.size.is_empty() => Err(Error::Recipe(
                "search: say how large a candidate may be: params, memory, or a grid".into(),
            )),
            (None, None) => Ok((
                Within {
                    least: 0,
                    most: u64::MAX,
                },
                target,
            )),
        }
    }

    /// Sizes to try by kind, under either name.
    ///
    /// # Errors
    /// `Recipe` for a kind with two lists.
    pub(in crate::pipeline) fn lists(&self) -> Result<BTreeMap<&str, &SizeList>> {
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
        let axis = |(kind, sizes): (&str, &SizeList)| match kind {
            "mlp_factor" => Ok(GridAxis::MlpFactors(sizes.0.clone())),
            kind => {
                space.axis(kind)?;
                let is_size = |size: &f64| *size >= 1.0 && size.fract() == 0.0 && *size < 1e9;
                match sizes.0.iter().find(|size| !is_size(size)) {
                    Some(size) => Err(Error::Recipe(format!(
                        "grid: {kind}: expected whole numbers, got {size}"
                    ))),
                    None => Ok(GridAxis::Sizes(
                        kind.to_owned(),
                        sizes.0.iter().map(|&size| size as usize).collect(),
                    )),
                }
            }
        };
        Grid::new(lists.into_iter().map(axis).collect::<Result<_>>()?)
    }

    /// Widths and heads, and what is freed: at one size, width pruning keeps more (best practice
    /// 4).
    fn all_legal(&self, space: &Space) -> Result<Grid> {
        self.free
            .iter()
            .try_for_each(|kind| space.axis(kind).map(drop))?;
        let on_request = [DEPTH, KV_HEADS, ROPE_PAIRS];
        let is_free =
            |kind: &str| !on_request.contains(&kind) || self.free.iter().any(|free| free == kind);
        let axes = space
            .axes
            .iter()
            .filter(|axis| is_free(&axis.kind))
            .map(|axis| {
                let legal = axis.legal();
                // The MLP's width is what meets a budget most closely.
                let most = if axis.kind == MLP {
                    usize::MAX
                } else {
                    MAX_PER_AXIS
                };
                let stride = legal.len().div_ceil(most).max(1);
                GridAxis::Sizes(
                    axis.kind.clone(),
                    legal.into_iter().rev().step_by(stride).collect(),
                )
            });
        Grid::new(axes.collect())
    }
}

fn ask(filter: &Predicate, sizes: &Sizes, n_params: u64) -> Result<bool> {
    let value = |name: &str| match name {
        "n_params" => Some(n_params as f64),
        "layers" => sizes.get(DEPTH).map(|&size| size as f64),
        kind => sizes.get(kind).map(|&size| size as f64),
    };
    filter.holds(&value).map_err(|e| e.at("filter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let read = |text: &str| text.parse::<SizeList>().map(|list| list.0);
        assert_eq!(read("24, 32,48").unwrap(), [24.0, 32.0, 48.0]);
        assert_eq!(read("29-32").unwrap(), [29.0, 30.0, 31.0, 32.0]);
        assert_eq!(
            read("4096-6144/1024,7").unwrap(),
            [4096.0, 5120.0, 6144.0, 7.0]
        );
        assert_eq!(read("2.5,3").unwrap(), [2.5, 3.0]);
        for bad in ["", "a", "5-3", "1-9/0", "1-", "1-100000"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::from_str::<SizeList>("[1, 2]").unwrap().0,
            [1.0, 2.0]
        );
        assert_eq!(serde_json::from_str::<SizeList>("3").unwrap().0, [3.0]);
    }
}
