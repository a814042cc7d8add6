//! `blocks`: every part of every layer made smaller by itself, and what that costs the whole model.

mod choices;
mod measured;
mod options;

pub use options::BlocksOptions;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use self::measured::{Measured, Partial};
use super::context::{Context, at_least_1};
use super::identity::identity_of;
use super::prune::memory::{Forecast, WaitingRoom};
use super::prune::planning::{scores_of, space_of};
use super::score::scores_path;
use minitron_core::checkpoint::Identity;
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::output::{OutputDir, OutputLock};
use minitron_core::plan::{BlockScores, Rankings};
use minitron_core::progress::Silent;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelFolder;
use minitron_core::windows::Windows;

/// The table in a stage's folder.
pub(crate) const BLOCKS_FILE: &str = "blocks.json";

/// A file of block scores, given itself or as the folder of a stage that wrote it.
pub(crate) fn blocks_path(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let found = match path.is_dir() {
        true => path.join(BLOCKS_FILE),
        false => path.to_path_buf(),
    };
    if found.is_file() {
        return Ok(found);
    }
    Err(Error::checkpoint(
        found,
        "no such block scores; `minitron blocks` writes them",
    ))
}

/// Measures blocks and writes the table. An interrupted one goes on at the layer it had reached.
pub fn blocks(context: &Context, options: &BlocksOptions, out: &Path) -> Result<Value> {
    options.check()?;
    let (ranks, reconstruction) = (context.ranks, &options.reconstruction);
    at_least_1("batch_size", reconstruction.batch_size)?;
    ranks.first(|| OutputDir::refuse_existing(out, context.force))?;
    let folder = context.open_as(&options.model, options.layers_apart)?;
    let own = identity_of(&folder)?;
    let scores_file = scores_path(&options.scores)?;
    refuse_out(out, &folder.checkpoint.dir, &scores_file)?;
    let mut _claim = None;
    ranks.first(|| {
        _claim = Some(OutputLock::of(out)?);
        Ok(())
    })?;
    let axes = context.axes(&options.axes)?;
    let space = space_of(&folder.spec, &axes, false)?;
    let scores = scores_of(context, &scores_file, &own, options.any_model)?;
    let groups = context.groups(&axes, &folder.spec)?;
    let rankings = Rankings::new(&scores, &groups, &options.by)?;
    let reconstructions = reconstruction.build(context)?;
    let windows = reconstruction.windows(context, &folder, true, Some(out))?;
    let windows = windows.ok_or_else(|| Error::Recipe("data: no text to measure on".into()))?;
    let identity = identity(context, options, (&own, &scores_file), &windows)?;
    ranks.same("blocks", &identity)?;
    let room = bounded(context, options, (&folder, &windows), out)?;
    let others = (&ranks as _, room.as_ref().map(WaitingRoom::path));
    let quiet = Context {
        progress: &Silent,
        ..*context
    };
    let ranked = (Some(&rankings), Some(&windows));
    let inputs = reconstruction.inputs(&quiet, &folder, ranked.0, ranked.1, others);
    let begin = Instant::now();
    let measured = Measured {
        context,
        options,
        space: &space,
        rankings: &rankings,
        reconstructions: &reconstructions,
    };
    let (blocks, timed) = measured.all(inputs, Partial::open(out, &identity))?;
    let named = reconstruction.named(context);
    let scores = BlockScores {
        model: Some(own),
        data: Some(windows.digest().to_owned()),
        n_tokens: windows.n_tokens() as u64,
        reconstruct: named.iter().map(PluginSpec::to_string).collect(),
        timed,
        blocks,
    };
    ranks.first(|| scores.save(out).and_then(|()| Partial::forget(out)))?;
    Ok(report(&scores, out, begin.elapsed().as_secs_f64()))
}

/// Where streams wait if memory is bounded.
///
/// # Errors
/// `Recipe` where the limit is too small; `Io`.
fn bounded(
    context: &Context,
    options: &BlocksOptions,
    (folder, windows): (&ModelFolder, &Windows),
    out: &Path,
) -> Result<Option<WaitingRoom>> {
    let Some(limit) = options.max_memory else {
        return Ok(None);
    };
    let n_windows = options.reconstruction.batch_size.min(windows.len());
    let n_tokens = Some((n_windows * windows.width()) as u64);
    Forecast::new(context, (folder, &folder.spec), (n_tokens, None)).check(context, limit)?;
    WaitingRoom::open(context, Some(out)).map(Some)
}

/// The table must not take the place of a folder, nor of what is read.
fn refuse_out(out: &Path, model_dir: &Path, scores: &Path) -> Result<()> {
    OutputDir::refuse_inputs(out, [model_dir, scores])?;
    if out.is_dir() {
        return Err(Error::Recipe(format!(
            "`{}` is a folder; name a file for the block scores",
            out.display()
        )));
    }
    Ok(())
}

/// All that decides the table, wherever the files lie.
fn identity(
    context: &Context,
    options: &BlocksOptions,
    (own, scores): (&Identity, &Path),
    windows: &Windows,
) -> Result<Value> {
    let mut settings = serde_json::to_value(options).unwrap_or_default();
    for place in ["model", "scores", "data", "max_memory"] {
        settings[place] = Value::Null;
    }
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": own.to_metadata(),
        "scores": digest::of_file(&PathBuf::from(scores))?,
        "data": windows.digest(),
        "settings": settings,
        "dtype": format!("{:?}", context.kind),
        "seed": context.seed,
        "plugins": context.registry.libraries(),
    }))
}

fn report(scores: &BlockScores, out: &Path, seconds: f64) -> Value {
    let mut report = serde_json::to_value(scores).unwrap_or_default();
    report["out"] = json!(out);
    report["seconds"] = json!(seconds);
    report
}
