use minitron_core::error::Result;
use minitron_engine::jobs::{BlocksOptions, blocks};

use super::prune::by;
use crate::args::{Blocks, Common};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Blocks) -> Result<()> {
    let options = BlocksOptions {
        by: by(&args.by),
        ..args.options.clone()
    };
    let report = single(common, args.force, |context| {
        blocks(context, &options, &args.out)
    })?;
    output::show(common.json, &report, output::blocks_table)
}
