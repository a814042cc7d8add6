use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_core::plan::Count;
use minitron_engine::jobs::TrainingOptions;
use minitron_engine::search::{SearchOptions, SizeList, search};

use super::prune::{by, by_kind};
use crate::args::{Common, Search};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Search) -> Result<()> {
    let (data, tokens) = (args.data.clone(), args.tokens.unwrap_or(Count(0)));
    let training = TrainingOptions {
        data,
        tokens,
        ..args.options.training.clone()
    };
    let (grid, size, by) = (grid(&args.grid)?, sizes(&args.size)?, by(&args.by));
    let options = SearchOptions {
        grid,
        size,
        by,
        training,
        ..args.options.clone()
    };
    let out = args.out.clone().unwrap_or_default();
    let report = single(common, args.force, |context| {
        search(context, &options, &out, args.resume, args.dry_run)
    })?;
    output::say_how_to_go_on(&report, "the same command with --resume");
    output::show(common.json, &report, output::search_table)
}

fn sizes(words: &[String]) -> Result<BTreeMap<String, SizeList>> {
    let mut lists = BTreeMap::new();
    for (kind, sizes) in by_kind(words)? {
        let parsed = sizes.parse::<SizeList>();
        let list = parsed.map_err(|e| e.at(format!("--size {kind}")))?;
        lists.insert(kind, list);
    }
    Ok(lists)
}

fn grid(words: &[String]) -> Result<BTreeMap<String, SizeList>> {
    let mut lists = BTreeMap::new();
    for word in words {
        let Some((kind, sizes)) = word.split_once('=') else {
            return Err(Error::Recipe(format!(
                "--grid: expected KIND=LIST such as heads=24,32,48, got `{word}`"
            )));
        };
        let parsed = sizes.parse::<SizeList>();
        let list = parsed.map_err(|e| e.at(format!("--grid {kind}")))?;
        lists.insert(kind.to_owned(), list);
    }
    Ok(lists)
}
