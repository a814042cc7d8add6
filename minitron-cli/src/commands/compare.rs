use minitron_core::error::Result;
use minitron_core::pipeline::{Recipe, Spec, compare};

use crate::args::{Common, Compare};
use crate::output;
use crate::settings::with_context;

pub fn run(common: &Common, args: &Compare) -> Result<()> {
    let spec = Spec::load(&args.spec)?;
    let plugins = spec.plugins.values().cloned().collect();
    let stated = Recipe { path: spec.path.clone(), seed: None, plugins, stages: Vec::new() };
    let report = with_context(common, args.force, Some(&stated), |context| compare(context, &spec, &args.out))?;
    output::say_how_to_go_on(&report, "the same command");
    output::show(common.json, &report, output::comparison_table)
}
