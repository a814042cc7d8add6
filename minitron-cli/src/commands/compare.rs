use minitron_core::error::{Error, Result};
use minitron_core::output::write_atomic;
use minitron_engine::compare::{Spec, compare};
use minitron_engine::recipe::Recipe;
use minitron_engine::report::{comparison_markdown, gather};
use serde_json::Value;

use crate::args::{Common, Compare};
use crate::output;
use crate::settings::with_context;

pub fn run(common: &Common, args: &Compare) -> Result<()> {
    let mut spec = Spec::load(&args.spec)?;
    if let Some(seed) = common.seed {
        spec.seeds = vec![seed];
        spec.rows.iter_mut().for_each(|row| row.seeds = None);
    }
    let plugins = spec.plugins.values().cloned().collect();
    let stated = Recipe {
        path: spec.path.clone(),
        seed: None,
        plugins,
        stages: Vec::new(),
    };
    let report = with_context(common, args.force, Some(&stated), |context| {
        compare(context, &spec, &args.out)
    })?;
    write(&report, args)?;
    output::say_how_to_go_on(&report, "the same command");
    output::show(common.json, &report, output::comparison_table)
}

/// The comparison for people: as Markdown and as a page.
fn write(report: &Value, args: &Compare) -> Result<()> {
    let comparison = serde_json::from_value(report.clone())
        .map_err(|e| Error::Internal(format!("compare.json: {e}")))?;
    write_atomic(
        &args.out.join("compare.md"),
        comparison_markdown(&comparison),
    )?;
    write_atomic(
        &args.out.join("report.html"),
        output::page(&[gather(&args.out)?]),
    )
}
