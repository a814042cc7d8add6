//! What a run tells step by step: metrics.jsonl, event files, and its speed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::events::Events;
use super::resume::State;
use super::step::Weighed;
use minitron_core::error::{IoContext, Result};

const METRICS: &str = "metrics.jsonl";

/// metrics.jsonl, one line per step, and the same numbers as events.
pub(super) struct Metrics(Option<Files>);

struct Files {
    path: PathBuf,
    file: File,
    events: Events,
}

impl Metrics {
    /// Opens the file and cuts off what follows the resumed step.
    pub fn open(out_dir: &Path, resumed: &State) -> Result<Self> {
        fs::create_dir_all(out_dir).at_path(out_dir)?;
        let path = out_dir.join(METRICS);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .at_path(&path)?;
        let found = file.metadata().at_path(&path)?.len();
        file.set_len(resumed.metrics_len.min(found))
            .at_path(&path)?;
        Ok(Metrics(Some(Files {
            path,
            file,
            events: Events::start(out_dir, resumed.step + 1)?,
        })))
    }

    /// Of a rank that writes nothing.
    pub fn nowhere() -> Self {
        Metrics(None)
    }

    /// Losses of the steps that are on record, with what each weighs; those left out that changed
    /// nothing.
    pub fn losses(&self) -> Result<Vec<Weighed>> {
        let Some(Files { path, .. }) = &self.0 else {
            return Ok(Vec::new());
        };
        let text = fs::read_to_string(path).at_path(path)?;
        let (mut losses, mut n_skipped) = (Vec::new(), 0);
        for line in text.lines() {
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let Some(skipped_by_now) = record["n_skipped"].as_u64() else {
                continue;
            };
            let is_skipped = n_skipped != skipped_by_now;
            n_skipped = skipped_by_now;
            let weight = record["n_predictions"]
                .as_f64()
                .or_else(|| record["n_states"].as_f64());
            if let Some(loss) = record["loss"].as_f64().filter(|_| !is_skipped) {
                losses.push((loss, weight));
            }
        }
        Ok(losses)
    }

    /// Adds a step's record.
    pub fn write(&mut self, step: u64, record: &Value) -> Result<()> {
        let Some(Files { path, file, events }) = &mut self.0 else {
            return Ok(());
        };
        writeln!(file, "{record}").at_path(path)?;
        events.scalars(step, record)
    }

    /// Makes all lines durable and gives their bytes; none where nothing is written.
    pub fn sync(&mut self) -> Result<Option<u64>> {
        let Some(Files { path, file, .. }) = &mut self.0 else {
            return Ok(None);
        };
        file.sync_all().at_path(&*path)?;
        Ok(Some(file.metadata().at_path(&*path)?.len()))
    }
}

/// Counts tokens over the time of steps alone; the first step, which warms caches up, is left out
/// of the rate.
pub(super) struct Clock {
    begin: Instant,
    /// Of earlier processes.
    before: f64,
    n_steps: u64,
    n_tokens: u64,
    busy: Duration,
}

impl Clock {
    /// Goes on after so many seconds.
    pub fn after(before: f64) -> Self {
        Clock {
            begin: Instant::now(),
            before,
            n_steps: 0,
            n_tokens: 0,
            busy: Duration::ZERO,
        }
    }

    /// A step of `n_tokens` is done.
    pub fn tick(&mut self, n_tokens: u64, took: Duration) {
        if self.n_steps > 0 {
            self.n_tokens += n_tokens;
            self.busy += took;
        }
        self.n_steps += 1;
    }

    /// Seconds since the run began, interruptions left out.
    pub fn elapsed(&self) -> f64 {
        self.before + self.begin.elapsed().as_secs_f64()
    }

    /// Tokens per second.
    pub fn rate(&self) -> f64 {
        if self.n_tokens == 0 {
            0.0
        } else {
            self.n_tokens as f64 / self.busy.as_secs_f64().max(1e-9)
        }
    }
}
