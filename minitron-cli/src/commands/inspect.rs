use minitron_core::error::Result;
use minitron_engine::jobs::{InspectOptions, inspect};

use crate::args::Common;
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, options: &InspectOptions) -> Result<()> {
    let report = single(common, false, |context| inspect(context, options))?;
    output::show(common.json, &report, output::inspect_table)
}
