use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_engine::jobs::{PruneOptions, prune};

use crate::args::{Common, Prune};
use crate::output;
use crate::settings::single;

pub fn run(common: &Common, args: &Prune) -> Result<()> {
    let options = PruneOptions {
        size: sizes(&args.size)?,
        by: by(&args.by),
        ..args.options.clone()
    };
    let out = args.out.clone().unwrap_or_default();
    let report = single(common, args.force, |context| {
        prune(context, &options, &out, args.dry_run)
    })?;
    output::show(common.json, &report, output::plan_table)
}

fn sizes(words: &[String]) -> Result<BTreeMap<String, usize>> {
    let mut sizes = BTreeMap::new();
    for (kind, size) in by_kind(words)? {
        let Ok(n) = size.trim().parse() else {
            return Err(Error::Recipe(format!(
                "--size {kind}: expected one whole number, got `{size}`"
            )));
        };
        sizes.insert(kind, n);
    }
    Ok(sizes)
}

/// `mlp=96,heads=2,4`: what is said of each kind. A piece without a kind belongs to the one before
/// it.
pub fn by_kind(words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for word in words {
        let mut kinds: Vec<(String, String)> = Vec::new();
        for piece in word.split(',') {
            match (piece.split_once('='), kinds.last_mut()) {
                (Some((kind, size)), _) => {
                    kinds.push((kind.trim().to_owned(), size.trim().to_owned()))
                }
                (None, Some((_, sizes))) => *sizes = format!("{sizes},{}", piece.trim()),
                (None, None) => return Err(no_size(word)),
            }
        }
        for (kind, sizes) in kinds {
            if kind.is_empty() {
                return Err(no_size(word));
            }
            let before = found.insert(kind.clone(), sizes.clone());
            if let Some(before) = before.filter(|before| *before != sizes) {
                return Err(Error::Recipe(format!(
                    "--size: `{kind}` is given twice, {before} and {sizes}; give one of them"
                )));
            }
        }
    }
    Ok(found)
}

fn no_size(word: &str) -> Error {
    Error::Recipe(format!(
        "--size: expected DIM=N such as mlp=96,heads=4, got `{word}`"
    ))
}

/// `KIND=LABEL` for one axis, `LABEL` for all.
pub fn by(words: &[String]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for word in words {
        let (kind, label) = word.split_once('=').unwrap_or(("", word));
        labels.insert(kind.to_owned(), label.to_owned());
    }
    labels
}
