//! `blocks`: every part of every layer made smaller by itself, and what that costs the whole model.

mod choices;
mod measured;
mod options;

pub use options::BlocksOptions;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::measured::{Measured, Partial};
use super::context::{Context, at_least_1};
use super::identity::identity_of;
use super::prune::memory::WaitingRoom;
use super::prune::planning::{scores_of, space_of};
use super::score::scores_path;
use minitron_core::checkpoint::Identity;
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::output::{OutputDir, OutputLock};
use minitron_core::plan::{BlockScores, Rankings, Timed};
use minitron_core::progress::Silent;
use minitron_core::reconstruct::{LayerTrials, ReconstructInputs};
use minitron_core::registry::PluginSpec;
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
    let reconstruction = &options.reconstruction;
    at_least_1("batch_size", reconstruction.batch_size)?;
    let ranks = context.ranks;
    ranks.first(|| OutputDir::refuse_existing(out, context.force))?;
    let folder = context.open(&options.model)?;
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
    context.ranks.same("blocks", &identity)?;
    let room = options
        .max_memory
        .map(|_| WaitingRoom::open(context, Some(out)))
        .transpose()?;
    let others = (&ranks as _, room.as_ref().map(WaitingRoom::path));
    let inputs = reconstruction.inputs(context, &folder, Some(&rankings), Some(&windows), others);
    // Of a layer of a trial nobody asks how far it is.
    let inputs = ReconstructInputs {
        calibration: inputs
            .calibration
            .map(|text| minitron_core::calibrate::Calibration {
                progress: &Silent,
                ..text
            }),
        ..inputs
    };
    let begin = std::time::Instant::now();
    let partial = Partial::open(out, &identity);
    let mut measured = Measured {
        context,
        options,
        space: &space,
        rankings: &rankings,
        reconstructions: &reconstructions,
        trials: LayerTrials::start(inputs)?,
    };
    let found = measured.all(partial)?;
    let scores = BlockScores {
        model: Some(own),
        data: Some(windows.digest().to_owned()),
        n_tokens: windows.n_tokens() as u64,
        reconstruct: reconstruction
            .named(context)
            .iter()
            .map(PluginSpec::to_string)
            .collect(),
        timed: measured.timed()?,
        blocks: found,
    };
    ranks.first(|| scores.save(out))?;
    ranks.first(|| Partial::forget(out))?;
    Ok(report(&scores, out, begin.elapsed().as_secs_f64()))
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
    let Timed {
        batch_size,
        seq_len,
        rest_ms,
    } = scores.timed.clone().unwrap_or_default();
    let mut report = json!({
        "out": out,
        "n_tokens": scores.n_tokens,
        "seconds": seconds,
        "reconstruct": scores.reconstruct,
        "blocks": scores.blocks,
    });
    if scores.timed.is_some() {
        report["timed"] = json!({ "batch_size": batch_size, "seq_len": seq_len,
            "rest_ms": rest_ms });
    }
    report
}
