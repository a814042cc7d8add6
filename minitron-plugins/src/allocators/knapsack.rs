use minitron_core::contract::Allocator;
use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockScores, Plan, Rankings, Space, parse_budget, parse_bytes};
use minitron_core::spec::{ModelSpec, SizeMap, Sizes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod budget;
mod solve;
mod table;

use budget::{Budget, Measure};
use solve::{Item, cheapest};
use table::Table;

pub use table::BlockScore;

/// Which layer gets what: of the sizes that `minitron blocks` measured for each part of each layer,
/// the ones whose costs in quality add up to least within a budget.
///
/// ```text
/// minimise Σ score(part, size)    so that    Σ cost(part, size) ≤ budget
/// ```
/// One budget is solved exactly by dynamic programming over what is saved (in steps of 1/20000 of
/// it where sizes share no larger one). A second one joins by Lagrange's multiplier: the least λ at
/// which the plan that is best by score + λ · cost keeps both. That scores add up is an
/// approximation that fails where much is cut: give `n_plans` to `search`, which measures the best
/// few as whole models.
///
/// Budgets are ceilings. Other dims keep their size or that of `hold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Knapsack {
    /// Most parameters, for example `4B`.
    pub params: Option<String>,
    /// Most parameters that one token goes through.
    pub active_params: Option<String>,
    /// Largest share of the parameters.
    pub ratio: Option<f64>,
    /// Whether `ratio` leaves embeddings and output head out on both sides.
    pub non_embedding: bool,
    /// Most bytes of weights and key/value cache, for example `8GiB`.
    pub memory: Option<String>,
    /// Tokens per sequence of the key/value cache; the model's positions where not given.
    pub seq_len: Option<usize>,
    /// Sequences of the key/value cache.
    pub batch_size: usize,
    /// Stored bytes of a parameter: 2 for f16 and bf16, 4 for f32.
    pub bytes_per_param: f64,
    /// Most milliseconds of a forward pass, as `minitron blocks --time` measured its parts.
    pub latency_ms: Option<f64>,
    /// What costs in quality are: the mean KL of the whole model, or the error of its last states.
    pub score: BlockScore,
    /// Sizes held, by kind.
    pub hold: Sizes,
    /// Plans given, best first.
    pub n_plans: usize,
}

impl Default for Knapsack {
    fn default() -> Self {
        Knapsack {
            params: None,
            active_params: None,
            ratio: None,
            non_embedding: false,
            memory: None,
            seq_len: None,
            batch_size: 1,
            bytes_per_param: 2.0,
            latency_ms: None,
            score: BlockScore::Auto,
            hold: Sizes::new(),
            n_plans: 1,
        }
    }
}

minitron_core::plugin! {
    Allocator for Knapsack {
        tag: "knapsack",
        summary: "sizes that differ from layer to layer, by what each was measured to cost",
        source: "Puzzle, arXiv 2411.19146; block scores by `minitron blocks`",
    }
}

#[typetag::serde(name = "knapsack")]
impl Allocator for Knapsack {
    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        let scores = rankings.blocks.as_ref().ok_or_else(|| {
            Error::Recipe(
                "knapsack: needs what smaller parts of layers cost: give --blocks; `minitron \
                 blocks` measures it"
                    .into(),
            )
        })?;
        scores.check(spec)?;
        let budgets = self.budgets(spec, scores)?;
        let table = Table::new(scores, self.score, &self.hold, space)?;
        let measures: Vec<&Measure> = budgets.iter().map(|budget| &budget.measure).collect();
        let items = table.items(&measures, spec)?;
        let whole: Vec<f64> = measures
            .iter()
            .map(|measure| measure.of(&table.sizes(spec, &[]), &[]))
            .collect();
        let needs: Vec<f64> = budgets
            .iter()
            .zip(&whole)
            .map(|(budget, whole)| whole - budget.most)
            .collect();
        // One more, since that without any layer is none.
        let mut chosen = cheapest(&items, &needs, self.n_plans.max(1).saturating_add(1));
        chosen.retain(|choice| table.has_layers(spec, choice));
        // What parts save adds up; that a plan is within its budgets is counted all the same.
        chosen.retain(|choice| {
            let picked = table.picked(choice);
            let sizes = table.sizes(spec, &picked);
            budgets.iter().all(|budget| budget.holds(&sizes, &picked))
        });
        chosen.truncate(self.n_plans.max(1));
        if chosen.is_empty() {
            return Err(unreachable(&items, &budgets, &whole));
        }
        let mut plans = Vec::with_capacity(chosen.len());
        for choice in &chosen {
            let picked = table.picked(choice);
            plans.push(table.plan(space, rankings, spec, &picked)?);
        }
        Ok(plans)
    }
}

impl Knapsack {
    /// Those that are given: one or two.
    fn budgets<'a>(&self, spec: &'a ModelSpec, scores: &'a BlockScores) -> Result<Vec<Budget<'a>>> {
        let mut all = Vec::new();
        if let Some(params) = &self.params {
            let most = parse_budget(params)?.n_params as f64;
            let measure = Measure::Params(spec);
            all.push(Budget { measure, most });
        }
        if let Some(params) = &self.active_params {
            let most = parse_budget(params)?.n_params as f64;
            let measure = Measure::Active(spec);
            all.push(Budget { measure, most });
        }
        if let Some(ratio) = self.ratio {
            if !(ratio > 0.0 && ratio <= 1.0) {
                return Err(Error::Recipe(format!(
                    "ratio: expected a share above 0, at most 1, got {ratio}"
                )));
            }
            let measure = match self.non_embedding {
                true => Measure::NonEmbedding(spec),
                false => Measure::Params(spec),
            };
            let most = measure.of(&SizeMap::default(), &[]) * ratio;
            all.push(Budget { measure, most });
        }
        if let Some(memory) = &self.memory {
            let given = self.bytes_per_param;
            if !(given > 0.0 && given <= 16.0) {
                return Err(Error::Recipe(format!(
                    "bytes_per_param: expected above 0, at most 16, got {given}"
                )));
            }
            let most = parse_bytes(memory)? as f64;
            let measure = Measure::Bytes {
                spec,
                seq_len: self.seq_len.unwrap_or(spec.options.max_positions),
                batch_size: self.batch_size,
                bytes_per_param: given,
            };
            all.push(Budget { measure, most });
        }
        if let Some(most) = self.latency_ms {
            let measure = Measure::latency(scores, &self.hold)?;
            all.push(Budget { measure, most });
        }
        match all.len() {
            1 | 2 => Ok(all),
            n => Err(Error::Recipe(format!(
                "knapsack: expected one budget, or two (params, active_params, ratio, memory, \
                 latency_ms), got {n}"
            ))),
        }
    }
}

fn unreachable(items: &[Item], budgets: &[Budget], whole: &[f64]) -> Error {
    let mut nearest = Vec::with_capacity(budgets.len());
    for (idx, (budget, whole)) in budgets.iter().zip(whole).enumerate() {
        let least = whole - items.iter().map(|item| item.most_saved(idx)).sum::<f64>();
        let Budget { most, measure } = budget;
        let unit = measure.unit();
        nearest.push(format!("at most {most:.0} {unit}: the least is {least:.0}"));
    }
    Error::Plan(format!(
        "knapsack: no choice of measured sizes keeps the budget ({}); allow more, hold a smaller \
         size beside it, or measure smaller ones with `minitron blocks --shares`",
        nearest.join("; ")
    ))
}
