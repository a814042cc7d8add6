//! What a training can refuse by looking at places alone, before any work.

use std::fs;
use std::path::{Path, PathBuf};

use super::options::TrainingOptions;
use super::start::WeightStart;
use super::teacher_source::TeacherSource;
use crate::data::files_of;
use crate::jobs::context::Context;
use crate::train::has_state;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::output::OutputDir;

/// Refuses an output that is in the way, or that holds what the training reads.
pub(crate) fn refuse(
    context: &Context,
    training: &TrainingOptions,
    start: &WeightStart,
    teacher: Option<&TeacherSource>,
    (out, resume): (&Path, bool),
) -> Result<()> {
    if !(resume && can_resume(out)?) {
        OutputDir::refuse_existing(out, context.force)?;
    }
    if context.kind == tch::Kind::Half {
        return Err(Error::Recipe(
            "dtype: f16 gradients underflow without scaling; train in bf16 or f32".into(),
        ));
    }
    let teacher_dir = teacher.map(|teaching| teaching.folder.checkpoint.dir.as_path());
    OutputDir::refuse_inputs(out, teacher_dir.into_iter().chain([start.dir.as_path()]))?;
    let cache = teacher.and_then(|teaching| teaching.options.teacher_cache.as_deref());
    refuse_places(context, training, cache, out)
}

/// Of text and a teacher's cache.
pub(crate) fn refuse_places(
    context: &Context,
    training: &TrainingOptions,
    cache: Option<&Path>,
    out: &Path,
) -> Result<()> {
    if let Some(cache) = cache
        && absolute(cache)?.starts_with(absolute(out)?)
    {
        let message = "teacher_cache: lies in the output folder, which is replaced; name a folder \
                       of its own";
        return Err(Error::Recipe(message.into()));
    }
    let reading = training.reading(2, context.seed);
    for data in [&training.data, &training.eval_data] {
        let files = files_of(data, context.registry, &reading)?;
        OutputDir::refuse_inputs(out, files.iter().map(PathBuf::as_path))?;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).at_path(path)
}

/// Whether a folder is absent, or holds a training's state or its beginnings and nothing else's
/// model.
fn can_resume(dir: &Path) -> Result<bool> {
    if !dir.exists() || has_state(dir) {
        return Ok(true);
    }
    const OWN: [&str; 9] = [
        "metrics.jsonl",
        "logs",
        "checkpoint",
        "best",
        ".best.part",
        ".best.old",
        "teacher",
        ".teacher.part",
        ".teacher.old",
    ];
    let entries = fs::read_dir(dir).at_path(dir)?.flatten();
    let mut names = entries.map(|entry| entry.file_name());
    Ok(names.all(|name| OWN.contains(&name.to_string_lossy().as_ref())))
}
