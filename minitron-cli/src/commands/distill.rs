use minitron_core::error::Result;
use minitron_engine::pipeline::{DistillOptions, TeacherOptions, distill};

use super::train::setup;
use crate::args::{Common, Distill, TeacherArgs, Training};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Distill) -> Result<()> {
    let asked = asked(&args.asked);
    let setup = setup(&args.training);
    let options = DistillOptions { teacher: args.teacher.clone(), student: args.student.clone(), asked, setup };
    let Training { out, resume, force, .. } = &args.training;
    let report = single(common, *force, |context| distill(context, &options, out, *resume))?;
    output::say_how_to_go_on(&report, "the same command with --resume");
    output::show(common.json, &report, output::facts_table)
}

/// How a teacher is asked.
pub fn asked(args: &TeacherArgs) -> TeacherOptions {
    TeacherOptions {
        stream_teacher: args.stream_teacher,
        teacher_dtype: args.teacher_dtype,
        teacher_cache: args.teacher_cache.clone(),
        cache_top_k: args.cache_top_k,
        cache_type: args.cache_type,
        correct_teacher: args.correct_teacher,
        any_model: args.any_model,
    }
}
