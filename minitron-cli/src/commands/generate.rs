use std::io;

use minitron_core::error::{Error, Result};
use minitron_engine::jobs::{Chat, Context, GenerateOptions, generate};

use crate::args::Common;
use crate::output;
use crate::settings::{single, with_context};

pub fn run(common: &Common, options: &GenerateOptions) -> Result<()> {
    if options.chat && options.prompt.is_empty() {
        return with_context(common, false, None, |context| {
            converse(context, options, common.json)
        });
    }
    let report = single(common, false, |context| generate(context, options))?;
    output::show(common.json, &report, output::generated_text)
}

/// Answers line after line, each with all before in mind.
fn converse(context: &Context, options: &GenerateOptions, json: bool) -> Result<()> {
    let mut chat = Chat::open(context, options)?;
    for line in io::stdin().lines() {
        let line = line.map_err(|e| Error::io("stdin", e))?;
        if !line.trim().is_empty() {
            output::show(json, &chat.say(&line)?, output::generated_text)?;
        }
    }
    Ok(())
}
