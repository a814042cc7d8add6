use minitron_core::error::Result;
use minitron_core::pipeline::{GenerateOptions, generate};

use crate::args::{Common, Generate};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Generate) -> Result<()> {
    let options = GenerateOptions {
        model: args.model.clone(),
        prompt: args.prompt.clone(),
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
    };
    let report = single(common, false, |context| generate(context, &options))?;
    output::show(common.json, &report, output::generated_text)
}
