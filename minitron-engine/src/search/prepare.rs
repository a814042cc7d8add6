//! What is checked and read before a field stands.

use tch::Kind;

use super::options::SearchOptions;
use crate::data::{DataSpec, Tokenizer};
use crate::jobs::context::Context;
use crate::jobs::prune::reconstruction::ReconstructOptions;
use crate::jobs::train::options::TrainingOptions;
use minitron_core::error::{Error, Result};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelFolder;
use minitron_core::windows::Windows;

/// What can be refused by looking at the options alone.
pub(super) fn refuse(context: &Context, options: &SearchOptions) -> Result<()> {
    let SearchOptions {
        teacher_options,
        training,
        ..
    } = options;
    if teacher_options.correct_teacher.is_some() {
        return refused(
            "correct_teacher: a teacher that learns says something else to every candidate; leave \
             it out",
        );
    }
    if training.stop_after.is_some() {
        return refused("stop_after: a search stops its candidates itself; leave it out");
    }
    if training.max_skipped == 0 || training.eval_every == Some(0) {
        return refused("max_skipped, eval_every: expected at least 1");
    }
    if context.kind == Kind::Half {
        return refused("dtype: f16 gradients underflow without scaling; search in bf16 or f32");
    }
    training.saving().check()
}

fn refused(message: &str) -> Result<()> {
    Err(Error::Recipe(message.into()))
}

/// The losses named, or the defaults.
pub(super) fn losses(context: &Context, options: &SearchOptions) -> Vec<PluginSpec> {
    match options.training.losses.as_slice() {
        [] => context.defaults.distillation_losses(),
        named => named.to_vec(),
    }
}

/// Reconstructions look at windows of the training text.
pub(super) fn reconstruction(options: &SearchOptions) -> ReconstructOptions {
    let training = &options.training;
    ReconstructOptions {
        reconstruct: options.reconstruct.clone(),
        data: if options.reconstruct.is_empty() {
            Vec::new()
        } else {
            unweighted(&training.data)
        },
        samples: options.reconstruct_samples,
        sampling: options.reconstruct_sampling,
        seq_len: training.seq_len,
        batch_size: training.batch_size,
        uncompensated: false,
        text: training.text.clone(),
    }
}

/// A mixture's data one after another.
fn unweighted(data: &[DataSpec]) -> Vec<DataSpec> {
    let data = data.iter();
    data.map(|spec| DataSpec {
        weight: None,
        ..spec.clone()
    })
    .collect()
}

/// The held-out text; the beginning of the training text where none is given, which is said.
pub(super) fn eval_windows(
    context: &Context,
    options: &SearchOptions,
    folder: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<Windows> {
    let training = &options.training;
    if let Some(windows) = training.eval_windows(context, &folder.spec, tokenizer)? {
        context.warn_of_date(tokenizer);
        return Ok(windows);
    }
    let message =
        "eval_data: none is given, so candidates are judged on text that they also learn from";
    context.progress.warn(message);
    let own = TrainingOptions {
        eval_data: unweighted(&training.data),
        ..training.clone()
    };
    let windows = own.eval_windows(context, &folder.spec, tokenizer)?;
    windows.ok_or_else(|| Error::Recipe("data: no text to learn from".into()))
}
