use minitron_core::error::Result;
use minitron_engine::recipe::{Recipe, run as run_recipe, verify};
use std::path::Path;

use crate::args::{Common, Run};
use crate::output;
use crate::settings::with_context;

pub fn run(common: &Common, args: &Run) -> Result<i32> {
    let (Some(recipe), Some(out)) = (&args.recipe, &args.out) else {
        return check(common, args, None);
    };
    let recipe = Recipe::load(recipe)?;
    let report = with_context(common, args.force, Some(&recipe), |context| {
        run_recipe(context, &recipe, out)
    })?;
    output::say_how_to_go_on(&report, "the same command");
    if args.verify.is_some() && report.get("interrupted").is_none() {
        return check(common, args, Some(out));
    }
    output::show(common.json, &report, output::run_table)?;
    Ok(0)
}

/// Says what differs between a run and the disk, or another run.
fn check(common: &Common, args: &Run, other: Option<&Path>) -> Result<i32> {
    let Some(dir) = &args.verify else {
        return Ok(0);
    };
    if let Some(threads) = common.threads {
        // They are among what is compared.
        tch::set_num_threads(i32::from(threads));
    }
    let report = verify(dir, other)?;
    output::show(common.json, &report, output::verify_table)?;
    Ok(i32::from(report["verified"] != true))
}
