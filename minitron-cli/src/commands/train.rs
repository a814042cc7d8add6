use minitron_core::error::Result;
use minitron_engine::jobs::{TrainOptions, train};

use crate::args::{Common, Train, Training};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Train) -> Result<()> {
    let options = TrainOptions {
        training: args.training.complete(&args.options.training),
        ..args.options.clone()
    };
    let Training {
        out, resume, force, ..
    } = &args.training;
    let report = single(common, *force, |context| {
        train(context, &options, out, *resume)
    })?;
    output::say_how_to_go_on(&report, "the same command with --resume");
    output::show(common.json, &report, output::facts_table)
}
