//! One file per command: flags to options, a job, its result.

mod blocks;
mod compare;
mod demo;
mod distill;
mod eval;
mod generate;
mod inspect;
mod launch;
mod new_plugin;
mod plugins;
mod prune;
mod recipe;
mod report;
mod run;
mod score;
mod search;
mod train;
mod watch;

use minitron_core::error::Result;

use crate::args::{Arguments, Command};

/// Runs the command. Only a comparison that comes out badly ends with a code of its own.
pub fn dispatch(arguments: &Arguments) -> Result<i32> {
    let common = &arguments.common;
    let _span = tracing::info_span!("command", name = arguments.command.name()).entered();
    match &arguments.command {
        Command::Inspect(args) => inspect::run(common, args),
        Command::Plugins { command } => plugins::run(common, command),
        Command::Eval(args) => eval::run(common, args),
        Command::Score(args) => score::run(common, args),
        Command::Blocks(args) => blocks::run(common, args),
        Command::Prune(args) => prune::run(common, args),
        Command::Train(args) => train::run(common, args),
        Command::Distill(args) => distill::run(common, args),
        Command::Search(args) => search::run(common, args),
        Command::Generate(args) => generate::run(common, args),
        Command::Recipe { command } => recipe::run(common, command),
        Command::Run(args) => return run::run(common, args),
        Command::Compare(args) => compare::run(common, args),
        Command::Demo(args) => demo::run(common, args),
        Command::Report(args) => report::run(common, args),
        Command::Watch(args) => watch::run(common, args),
        Command::Launch(args) => return launch::run(args),
    }?;
    Ok(0)
}
