//! What held-out text says of the plain cut and of the reconstructed student.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::PruneOptions;
use crate::data::files_of;
use crate::jobs::card::Fact;
use crate::jobs::context::{Context, seq_len_or_default};
use crate::jobs::train::settings::EVAL_SAMPLES;
use minitron_core::calibrate::{Calibration, World};
use minitron_core::error::{Error, Result};
use minitron_core::output::OutputDir;
use minitron_core::plan::Plan;
use minitron_core::reconstruct::{HeldOutMeans, StudentEditor};
use minitron_core::spec::ModelFolder;
use minitron_core::windows::{Task, Tokenize, Windows};

/// Text that nothing is fitted to.
pub(super) struct HeldOutText {
    pub windows: Windows,
    task: Task,
    batch_size: usize,
}

impl PruneOptions {
    /// The first windows of the held-out text, as `eval` takes them; never from the output's own
    /// place.
    pub(super) fn held_out(
        &self,
        context: &Context,
        folder: &ModelFolder,
        out: Option<&Path>,
    ) -> Result<Option<HeldOutText>> {
        let of_text = &self.reconstruction;
        if self.eval_data.is_empty() {
            return match self.eval_samples {
                None => Ok(None),
                Some(_) => Err(Error::Recipe(
                    "eval_samples: no eval_data is given to evaluate on".into(),
                )),
            };
        }
        let tokenizer = context.reader(folder, &of_text.text)?;
        let seq_len = seq_len_or_default(of_text.seq_len, &folder.spec, &tokenizer);
        let max_windows = Some(self.eval_samples.unwrap_or(EVAL_SAMPLES));
        let reading = of_text.text.reading(seq_len, max_windows, context.seed);
        let read = || -> Result<Windows> {
            if let Some(out) = out {
                let files = files_of(&self.eval_data, context.registry, &reading)?;
                OutputDir::refuse_inputs(out, files.iter().map(PathBuf::as_path))?;
            }
            let windows = reading.windows(&self.eval_data, &tokenizer, context.registry)?;
            windows.check_fits(&folder.spec.options)?;
            Ok(windows)
        };
        Ok(Some(HeldOutText {
            windows: read().map_err(|e| e.at("eval_data"))?,
            task: Task::of_model(&folder.spec.options, tokenizer.mask(), context.seed)
                .map_err(|e| e.at("eval_data"))?,
            batch_size: of_text.batch_size,
        }))
    }
}

impl HeldOutText {
    /// Of the student of a plan that nothing repairs.
    pub fn of_plain_cut(
        &self,
        context: &Context,
        options: &PruneOptions,
        (folder, plan): (&ModelFolder, &Plan),
        (world, spill): (&dyn World, Option<&Path>),
    ) -> Result<HeldOutMeans> {
        let reconstruction = &options.reconstruction;
        let inputs = reconstruction.inputs(context, folder, None, None, (world, spill));
        self.of(context, world, &StudentEditor::new(inputs, plan.clone())?)
    }

    fn of(
        &self,
        context: &Context,
        world: &dyn World,
        editor: &StudentEditor,
    ) -> Result<HeldOutMeans> {
        editor.held_out(Calibration {
            windows: &self.windows,
            task: Some(self.task),
            batch_size: self.batch_size,
            world,
            progress: context.progress,
        })
    }

    /// The plain cut and the student; warns where the student is farther from its source.
    pub fn compared(
        &self,
        context: &Context,
        world: &dyn World,
        (plain, editor): (HeldOutMeans, &StudentEditor),
    ) -> Result<Value> {
        let student = match editor.reconstructed().is_empty() {
            true => plain,
            false => self.of(context, world, editor)?,
        };
        if is_farther(student, plain) {
            context.progress.warn(
                "eval_data: the reconstructed student is farther from its source than the plain \
                 cut on this text; take more --data, some of this kind, or --reconstruct none",
            );
        }
        Ok(in_json(plain, student))
    }
}

fn in_json(plain: HeldOutMeans, student: HeldOutMeans) -> Value {
    let means = |of: HeldOutMeans| match of {
        HeldOutMeans::Logits { loss, kl, .. } => json!({ "loss": loss, "kl": kl }),
        HeldOutMeans::States { cosine, .. } => json!({ "cosine": cosine }),
    };
    let mut report = json!({ "plain": means(plain), "student": means(student) });
    match student {
        HeldOutMeans::Logits {
            n_tokens,
            teacher_loss,
            ..
        } => {
            report["n_tokens"] = json!(n_tokens);
            report["loss_source"] = json!(teacher_loss);
        }
        HeldOutMeans::States { n_tokens, .. } => report["n_tokens"] = json!(n_tokens),
    }
    report
}

/// What is not finite is.
fn is_farther(student: HeldOutMeans, plain: HeldOutMeans) -> bool {
    match (student, plain) {
        (HeldOutMeans::Logits { kl, .. }, HeldOutMeans::Logits { kl: of_plain, .. }) => {
            kl.is_nan() || kl > of_plain
        }
        (
            HeldOutMeans::States { cosine, .. },
            HeldOutMeans::States {
                cosine: of_plain, ..
            },
        ) => cosine.is_nan() || cosine < of_plain,
        _ => false,
    }
}

/// For the card.
pub(super) fn measured(report: &Value) -> Vec<Fact> {
    let held_out = &report["held_out"];
    let student = &held_out["student"];
    let number = |value: &Value| value.as_f64().map(|number| format!("{number:.4}"));
    let mut facts = Vec::new();
    if let (Some(loss), Some(source)) = (number(&student["loss"]), number(&held_out["loss_source"]))
    {
        facts.push((
            "held-out loss".to_owned(),
            format!("{loss} (source {source})"),
        ));
    }
    for (key, name) in [
        ("kl", "held-out KL to the source"),
        ("cosine", "held-out cosine to the source"),
    ] {
        if let Some(number) = number(&student[key]) {
            facts.push((name.to_owned(), number));
        }
    }
    facts
}
