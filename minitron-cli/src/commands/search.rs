use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_core::plan::Count;
use minitron_engine::pipeline::{Context, SearchOptions, SizeList, TrainingOptions, search};

use super::prune::{by, by_kind};
use crate::args::{Common, Search};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Search) -> Result<()> {
    let (data, tokens) = (args.data.clone(), args.tokens.unwrap_or(Count(0)));
    let setup = TrainingOptions {
        data,
        tokens,
        ..args.options.setup.clone()
    };
    let (grid, size, by) = (grid(&args.grid)?, sizes(&args.size)?, by(&args.by));
    let options = SearchOptions {
        grid,
        size,
        by,
        setup,
        ..args.options.clone()
    };
    let out = args.out.clone().unwrap_or_default();
    let job = |context: &Context| search(context, &options, &out, args.resume, args.dry_run);
    let report = single(common, args.force, job)?;
    output::say_how_to_go_on(&report, "the same command with --resume");
    output::show(common.json, &report, output::search_table)
}

fn sizes(words: &[String]) -> Result<BTreeMap<String, SizeList>> {
    let list = |(kind, sizes): (String, String)| match sizes.parse() {
        Ok(sizes) => Ok((kind, sizes)),
        Err(e) => Err(Error::at(e, format!("--size {kind}"))),
    };
    by_kind(words)?.into_iter().map(list).collect()
}

fn grid(words: &[String]) -> Result<BTreeMap<String, SizeList>> {
    let axis = |word: &String| {
        let wrong = || {
            Error::Recipe(format!(
                "--grid: expected KIND=LIST such as heads=24,32,48, got `{word}`"
            ))
        };
        let (kind, sizes) = word.split_once('=').ok_or_else(wrong)?;
        let sizes = sizes
            .parse()
            .map_err(|e: Error| e.at(format!("--grid {kind}")))?;
        Ok((kind.to_owned(), sizes))
    };
    words.iter().map(axis).collect()
}
