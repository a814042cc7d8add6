use minitron_core::error::Result;
use minitron_engine::jobs::{DistillOptions, distill};

use crate::args::{Common, Distill, Training};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Distill) -> Result<()> {
    let options = DistillOptions {
        training: args.training.complete(&args.options.training),
        ..args.options.clone()
    };
    let Training {
        out, resume, force, ..
    } = &args.training;
    let report = single(common, *force, |context| {
        distill(context, &options, out, *resume)
    })?;
    output::say_how_to_go_on(&report, "the same command with --resume");
    output::show(common.json, &report, output::facts_table)
}
