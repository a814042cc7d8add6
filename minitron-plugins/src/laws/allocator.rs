//! Every plan keeps a legal size of every dim; at least one, the same each time.

use minitron_core::contract::Allocator;
use minitron_core::error::{Error, Result};
use minitron_core::plan::{BlockChoice, BlockChoices, BlockScores, Plan, Space};
use minitron_core::random::SplitMix;
use minitron_core::spec::{ModelSpec, Sizes, split_dim};

use super::samples::random_rankings;
use super::{SampleModel, Trial, UNTRIED, of_inputs};

/// Tries an allocator on every sample that its parameters can be met on.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let mut unmet = String::new();
    let mut n_tried = 0_usize;
    for sample in samples {
        match on(trial, sample) {
            Ok(()) => n_tried += 1,
            Err(error) => unmet = of_inputs(&error).ok_or(error)?,
        }
    }
    match n_tried {
        0 => Ok(format!(
            "{UNTRIED} it has parameters that a tiny model meets: {unmet}"
        )),
        _ => Ok("legal plans, the same twice".into()),
    }
}

fn on(trial: &Trial, sample: &SampleModel) -> Result<()> {
    let allocator = trial.build::<dyn Allocator>()?;
    let (space, spec) = (sample.space(trial.registry)?, &sample.spec);
    let mut rankings = random_rankings(&sample.groups(trial.registry)?, 3)?;
    rankings.blocks = Some(random_blocks(&space, spec, 3));
    let plans = allocator.allocate(&space, &rankings, spec)?;
    trial.ensure(
        !plans.is_empty(),
        "it gives no plan: expected at least one, or an error that says why",
    )?;
    for plan in &plans {
        let checked = plan.clone().checked(&space, spec);
        let checked =
            checked.map_err(|error: Error| trial.broken(format!("an illegal plan: {error}")))?;
        trial.ensure(
            checked == *plan,
            format!("a plan leaves dims out: it has {}", dims(plan)),
        )?;
    }
    let again = allocator.allocate(&space, &rankings, spec)?;
    trial.ensure(again == plans, "asked twice, it gives two answers")
}

fn dims(plan: &Plan) -> String {
    plan.kept
        .keys()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What smaller parts of layers cost, drawn at random: layers that go, and sizes of layers that may
/// differ.
fn random_blocks(space: &Space, spec: &ModelSpec, seed: u64) -> BlockScores {
    let mut random = SplitMix::new(seed);
    let mut blocks = Vec::new();
    for layer in 0..spec.n_layers() {
        let sizes = spec
            .dims
            .values()
            .filter(|dim| split_dim(&dim.name).1 == Some(layer));
        let sizes = sizes.filter_map(|dim| Some((dim, space.axis(&dim.name).ok()?)));
        let mut parts: Vec<(String, Vec<Sizes>)> = sizes
            .map(|(dim, axis)| {
                let legal = axis.legal().into_iter().filter(|&size| size < axis.full);
                let one = |size| Sizes::from([(dim.name.clone(), size)]);
                (dim.name.clone(), legal.map(one).collect())
            })
            .collect();
        let is_fixed = spec.fixed_layers.iter().any(|(fixed, _)| *fixed == layer);
        if parts.is_empty() && !is_fixed {
            parts.push(("layer".into(), vec![Sizes::new()]));
        }
        for (part, sizes) in parts {
            let choices = sizes.into_iter().map(|sizes| BlockChoice {
                sizes,
                kl: None,
                error: random.unit(),
                ms: None,
            });
            let choices = choices.collect();
            blocks.push(BlockChoices {
                layer,
                part,
                ms: None,
                choices,
            });
        }
    }
    BlockScores {
        blocks,
        ..BlockScores::default()
    }
}
