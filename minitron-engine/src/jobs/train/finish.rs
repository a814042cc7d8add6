//! A training's last part: the loop, and the student written where nothing is left to do.

use std::path::Path;

use serde_json::{Value, json};

use super::Training;
use super::student::{StudentFolder, clear, measured};
use super::teacher_source::TeacherSource;
use crate::memory::peak_bytes;
use crate::train::{Outcome, StartRate, Trainer};
use minitron_core::error::Result;
use minitron_core::spec::ModelSpec;

impl Training<'_> {
    /// Trains, and writes the student where nothing is left to do.
    pub(super) fn finish(
        &self,
        trainer: &Trainer,
        folder: &StudentFolder,
        teacher: Option<&TeacherSource>,
        rate: StartRate,
    ) -> Result<Value> {
        trainer.check()?;
        let (context, out_dir) = (self.context, self.out_dir);
        // Nothing that was there goes before all that can be refused was.
        context
            .ranks
            .first(|| match !self.resume && out_dir.exists() {
                true => clear(out_dir),
                false => Ok(()),
            })?;
        let _listening = context.interrupt.listen();
        let (outcome, masters) = trainer.run(self.resume)?.single()?;
        let (n_skipped, n_steps) = (outcome.n_skipped, outcome.n_steps);
        if n_skipped > 0 {
            let message = format!(
                "{n_skipped} of {n_steps} steps changed nothing: their loss or gradient was not \
                 finite"
            );
            context.progress.warn(&message);
        }
        if outcome.is_complete() && context.ranks.is_first() {
            if let (Some(teaching), Some(correction), Some(masters)) =
                (teacher, &trainer.correction, &masters.teacher)
            {
                let target = out_dir.join("teacher");
                teaching.write(correction.model, masters, folder.card, &target)?;
            }
            folder.write_among(&masters.student, out_dir, &measured(out_dir))?;
        }
        Ok(summary(&outcome, &folder.student.spec, out_dir, rate))
    }
}

fn summary(outcome: &Outcome, spec: &ModelSpec, out_dir: &Path, rate: StartRate) -> Value {
    let mut found = json!({ "out": out_dir, "n_params": spec.n_params() });
    if let Some(kl) = rate.kl {
        found["kl_at_start"] = json!(kl);
        found["lr"] = json!(rate.lr);
    }
    let rest = json!({
        "n_steps": outcome.n_steps,
        "n_planned": outcome.n_planned,
        "n_tokens": outcome.n_tokens,
        "loss": outcome.loss,
        "n_skipped": outcome.n_skipped,
        "best": outcome.best,
        "tokens_per_second": outcome.tokens_per_second,
        "memory": { "predicted_bytes": outcome.memory_bytes, "peak_bytes": peak_bytes() },
        "complete": outcome.is_complete(),
        "interrupted": outcome.is_interrupted,
    });
    for (key, value) in rest.as_object().into_iter().flatten() {
        found[key] = value.clone();
    }
    found
}
