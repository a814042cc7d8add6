use minitron_core::error::Result;
use minitron_core::pipeline::{Recipe, run as run_recipe};

use crate::args::{Common, Run};
use crate::output;
use crate::settings::with_context;

pub fn run(common: &Common, args: &Run) -> Result<()> {
    let recipe = Recipe::load(&args.recipe)?;
    let report = with_context(common, args.force, Some(&recipe), |context| run_recipe(context, &recipe, &args.out))?;
    output::say_how_to_go_on(&report, "the same command");
    output::show(common.json, &report, output::run_table)
}
