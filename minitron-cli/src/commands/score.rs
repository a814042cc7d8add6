use minitron_core::error::Result;
use minitron_engine::pipeline::{ScoreOptions, score};

use crate::args::{Common, Score};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Score) -> Result<()> {
    let options = ScoreOptions {
        model: args.model.clone(),
        data: args.data.clone(),
        metrics: args.metrics.clone(),
        samples: args.samples,
        seq_len: args.seq_len,
        batch_size: args.batch_size,
        text: args.files.text(),
        bootstrap: args.bootstrap,
        stream: args.stream,
        max_memory: args.max_memory,
    };
    let report = single(common, args.force, |context| score(context, &options, &args.out))?;
    output::show(common.json, &report, output::scores_table)
}
