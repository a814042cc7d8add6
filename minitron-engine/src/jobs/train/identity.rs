//! What a resumed training must share with the one that it goes on with.

use serde_json::{Value, json};

use super::teacher_source::TeacherSource;
use crate::data::DataLoader;
use crate::jobs::context::Context;
use minitron_core::error::Result;
use minitron_core::registry::PluginSpec;
use minitron_core::windows::Windows;

/// All that decides the result besides the settings.
pub(crate) fn identity(
    context: &Context,
    losses: &[PluginSpec],
    loader: &DataLoader,
    (eval_windows, eval_every): (Option<&Windows>, Option<u64>),
    student: &str,
    teacher: Option<&TeacherSource>,
) -> Result<Value> {
    Ok(json!({
        "data": loader.digest(),
        "eval_data": eval_windows.map(|windows| json!([windows.digest(), eval_every])),
        "losses": losses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "student": student,
        "teacher": teacher.map(|teaching| teaching.digest.as_str()),
        "teacher_cache": teacher.and_then(TeacherSource::cached_as),
        "teacher_dtype": teacher.and_then(|teaching| teaching.options.teacher_dtype),
        "correct_teacher": teacher.and_then(|teaching| teaching.options.correct_teacher),
        "dtype": format!("{:?}", context.kind),
        "libraries": context.registry.libraries(),
        "files": PluginSpec::digests(losses)?,
    }))
}
