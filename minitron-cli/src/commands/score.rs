use minitron_core::error::Result;
use minitron_engine::jobs::score;

use crate::args::{Common, Score};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Score) -> Result<()> {
    let report = single(common, args.force, |context| {
        score(context, &args.options, &args.out)
    })?;
    output::show(common.json, &report, output::scores_table)
}
