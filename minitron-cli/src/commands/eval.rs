use minitron_core::error::Result;
use minitron_engine::jobs::{EvalOptions, eval};

use crate::args::Common;
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, options: &EvalOptions) -> Result<()> {
    let report = single(common, false, |context| eval(context, options))?;
    output::show(common.json, &report, output::facts_table)
}
