use minitron_core::error::Result;
use minitron_engine::pipeline::{EvalOptions, eval};

use crate::args::{Common, Eval};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Eval) -> Result<()> {
    let options = EvalOptions {
        model: args.model.clone(),
        data: args.data.clone(),
        teacher: args.teacher.clone(),
        tasks: args.tasks.clone(),
        evaluators: args.evaluators.clone(),
        samples: args.samples,
        seq_len: args.seq_len,
        batch_size: args.batch_size,
        text: args.files.text(),
        any_model: args.any_model,
    };
    let report = single(common, false, |context| eval(context, &options))?;
    output::show(common.json, &report, output::facts_table)
}
