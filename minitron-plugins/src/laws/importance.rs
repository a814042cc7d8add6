//! One finite score per unit, the same twice, and whatever the batch size.

use minitron_core::calibrate::Scores;
use minitron_core::error::{IoContext, Result};
use minitron_core::spec::PruneGroup;
use minitron_core::windows::Windows;
use minitron_engine::data::Tokenizer;
use minitron_engine::score::{Metric, ScoreInputs, score};

use super::evaluator::{TEXT, tokenizer};
use super::samples::some_windows;
use super::{SampleModel, Trial, UNTRIED, of_inputs};

/// Tries a metric on every sample with groups that it scores.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let windows = some_windows(8, 10, 2)?;
    let dir = tempfile::tempdir().at_path("a temporary folder")?;
    let tokenizer = tokenizer(dir.path(), TEXT)?;
    let (mut n_groups, mut refusal) = (0_usize, String::new());
    for sample in samples {
        let given = Given {
            trial,
            sample,
            windows: &windows,
            tokenizer: &tokenizer,
        };
        match given.check() {
            Ok(n) => n_groups += n,
            Err(error) => refusal = of_inputs(&error).ok_or(error)?,
        }
    }
    if n_groups == 0 {
        return Ok(format!(
            "{UNTRIED} there are groups that it scores; of none here: {refusal}"
        ));
    }
    Ok("one finite score per unit, the same twice and whatever the batch size".into())
}

struct Given<'a> {
    trial: &'a Trial<'a>,
    sample: &'a SampleModel,
    windows: &'a Windows,
    tokenizer: &'a Tokenizer,
}

impl Given<'_> {
    fn check(&self) -> Result<usize> {
        let groups = self.sample.groups(self.trial.registry)?;
        let (one, again) = (self.scores(&groups, 1)?, self.scores(&groups, 1)?);
        let three = self.scores(&groups, 3)?;
        self.trial.ensure(
            one.by_name == again.by_name,
            "asked twice, it gives two answers",
        )?;
        for (name, scores) in &one.by_name {
            let others = three.by_name.get(name);
            self.trial.ensure(
                others.is_some_and(|others| are_close(scores, others)),
                format!("`{name}` depends on how windows are batched"),
            )?;
        }
        Ok(one.by_name.len())
    }

    /// The scores, each checked for number and finiteness by the pass.
    fn scores(&self, groups: &[PruneGroup], batch_size: usize) -> Result<Scores> {
        let SampleModel { spec, source } = self.sample;
        let metric = Metric {
            label: self.trial.plugin.tag.to_owned(),
            importance: self.trial.build()?,
        };
        let inputs = ScoreInputs {
            task: self.sample.calibration(self.windows, batch_size)?.task,
            tokenizer: Some(self.tokenizer),
            batch_size,
            ..ScoreInputs::new(source, spec, groups, self.windows)
        };
        score(&inputs, vec![metric])
    }
}

fn are_close(one: &[f32], other: &[f32]) -> bool {
    let mut pairs = one.iter().zip(other);
    let is_far = pairs.any(|(a, b)| (a - b).abs() > 1e-5 * a.abs().max(b.abs()));
    one.len() == other.len() && !is_far
}
