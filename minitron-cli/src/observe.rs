//! `--log` and `--trace`: who listens to what the rooms say of their work.

mod chrome;

use std::str::FromStr;

use minitron_core::error::{Error, Result};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::chrome::{Chrome, TraceFile};
use crate::args::Common;
use crate::output;

/// Asked where `--log` is not given.
const VARIABLE: &str = "MINITRON_LOG";
/// Whose spans a trace holds.
const OURS: [&str; 4] = [
    "minitron",
    "minitron_core",
    "minitron_engine",
    "minitron_plugins",
];

/// Listens as long as this lives.
#[derive(Debug)]
pub struct Observing {
    file: Option<TraceFile>,
}

impl Drop for Observing {
    fn drop(&mut self) {
        if let Some(error) = self.file.as_ref().and_then(TraceFile::finish) {
            output::warn(&format!("the trace is not whole: {error}"));
        }
    }
}

/// Begins to listen, where anybody asked for it; without, spans cost a comparison.
///
/// # Errors
/// `Recipe` for a filter that cannot be read, `Io` where the file cannot be written.
pub fn start(common: &Common) -> Result<Observing> {
    let lines = filter(common)?.map(|filter| output::Lines::new(common.quiet).with_filter(filter));
    let file = common.trace.as_deref().map(TraceFile::create).transpose()?;
    let ours = Targets::new().with_targets(OURS.map(|name| (name, LevelFilter::DEBUG)));
    let chrome = file.clone().map(|file| Chrome::new(file).with_filter(ours));
    if lines.is_some() || chrome.is_some() {
        // Only fails where somebody listens already, and nobody else begins to.
        let _ = tracing_subscriber::registry()
            .with(lines)
            .with(chrome)
            .try_init();
    }
    Ok(Observing { file })
}

fn filter(common: &Common) -> Result<Option<Targets>> {
    let variable = std::env::var(VARIABLE).ok();
    let (name, words) = match (&common.log, variable.as_ref()) {
        (Some(words), _) => ("--log", words),
        (None, Some(words)) if !words.is_empty() => (VARIABLE, words),
        (None, _) => return Ok(None),
    };
    let filter = words.parse().ok();
    if filter.is_none() || !words.split(',').map(str::trim).all(names_level) {
        return Err(Error::Recipe(format!(
            "{name}: expected error, warn, info, debug or trace, or rooms such as \
             minitron_engine::train=debug,info, got `{words}`"
        )));
    }
    Ok(filter)
}

/// `LEVEL` or `ROOM=LEVEL`: a word that is no level would be taken for the name of a room.
fn names_level(word: &str) -> bool {
    match word.split_once('=') {
        Some((room, level)) => !room.is_empty() && is_level(level),
        None => is_level(word),
    }
}

fn is_level(word: &str) -> bool {
    !word.is_empty() && LevelFilter::from_str(word).is_ok()
}
