use minitron_core::error::Result;
use minitron_engine::pipeline::{InspectOptions, inspect};

use crate::args::{Common, Inspect};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Inspect) -> Result<()> {
    let options = InspectOptions { model: args.model.clone(), seq_len: args.seq_len, batch_size: args.batch_size };
    let report = single(common, false, |context| inspect(context, &options))?;
    output::show(common.json, &report, output::inspect_table)
}
