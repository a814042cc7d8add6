use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_core::plan::Count;
use minitron_engine::pipeline::{Context, SearchOptions, SizeList, search};

use super::distill::asked;
use super::prune::{by, by_kind};
use super::train::training_options;
use crate::args::{Common, Search};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Search) -> Result<()> {
    let options = SearchOptions {
        model: args.model.clone(),
        scores: args.scores.clone(),
        params: args.params.clone(),
        memory: args.memory.clone(),
        kv_seq_len: args.kv_seq_len,
        grid: grid(&args.grid)?,
        size: sizes(&args.size)?,
        free: args.free.clone(),
        filter: args.filter.clone(),
        square: args.square,
        candidates: args.candidates,
        screen: args.screen,
        rungs: args.rungs,
        keep_share: args.keep_share,
        axes: args.axes.clone(),
        by: by(&args.by),
        heal: args.heal.clone(),
        reconstruct_samples: args.reconstruct_samples,
        max_memory: args.max_memory,
        asked: asked(&args.asked),
        setup: training_options(&args.training, &args.data, args.tokens.unwrap_or(Count(0))),
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
        let wrong = || Error::Recipe(format!("--grid: expected KIND=LIST such as heads=24,32,48, got `{word}`"));
        let (kind, sizes) = word.split_once('=').ok_or_else(wrong)?;
        let sizes = sizes.parse().map_err(|e: Error| e.at(format!("--grid {kind}")))?;
        Ok((kind.to_owned(), sizes))
    };
    words.iter().map(axis).collect()
}
