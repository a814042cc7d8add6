//! A running job on the terminal.

use std::io::{self, IsTerminal, Write};

use comfy_table::CellAlignment;
use minitron_core::error::{Error, Result};
use minitron_engine::report::{
    JobProgress, Point, StageProgress, StageState, TrainingReport, bytes, grouped,
};

use super::tables::table;

/// Columns of the loss's line.
const SPARK_WIDTH: usize = 48;
/// Seconds without a change after which a job may have been stopped.
const LONG: f64 = 120.0;

/// Text on stdout that the next text takes the place of.
#[derive(Debug, Default)]
pub struct Screen {
    n_lines: usize,
    last: String,
}

impl Screen {
    /// Draws a text over the last one on terminals, below it elsewhere, and not at all where it
    /// says the same. False where the reader has gone away.
    pub fn draw(&mut self, text: &str, over: bool) -> Result<bool> {
        let mut stdout = io::stdout().lock();
        let is_over = over && stdout.is_terminal();
        if text == self.last {
            return Ok(true);
        }
        // Up to the first line of the last text, and all below it away.
        let back = if is_over && self.n_lines > 0 {
            format!("\x1b[{}F\x1b[J", self.n_lines)
        } else {
            String::new()
        };
        self.n_lines = text.lines().count();
        self.last = text.to_owned();
        match writeln!(stdout, "{back}{text}").and_then(|()| stdout.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(Error::io("stdout", e)),
            Ok(()) => Ok(true),
        }
    }
}

/// What `watch` shows.
pub fn progress_text(progress: &JobProgress) -> String {
    let n_done = progress
        .stages
        .iter()
        .filter(|stage| stage.state != StageState::Waiting)
        .count();
    let state = match (progress.complete, progress.idle_s) {
        (true, _) => "complete".to_owned(),
        (false, Some(idle_s)) if idle_s > LONG => {
            format!("nothing written for {}, stopped?", duration(idle_s))
        }
        _ => "running".to_owned(),
    };
    let mut parts = vec![format!("{}: {state}", plain(&progress.title))];
    if !progress.stages.is_empty() {
        let done = format!("{n_done} of {}", progress.stages.len());
        let mut stages = table(&[&done, "", "", "time", "loss"]);
        for stage in &progress.stages {
            stages.add_row(stage_row(stage));
        }
        for column in stages.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        parts.push(stages.to_string());
    }
    parts.extend(
        progress
            .training
            .as_ref()
            .map(|training| training_text(training, progress.eta_s)),
    );
    parts.extend(
        progress
            .warnings
            .iter()
            .map(|warned| format!("warning  {}", plain(&warned.text()))),
    );
    parts.extend(
        progress
            .peak_bytes
            .map(|n_bytes| format!("memory   at most {}", bytes(n_bytes))),
    );
    parts.join("\n")
}

fn stage_row(stage: &StageProgress) -> [String; 5] {
    let state = match stage.state {
        StageState::Done => "done",
        StageState::Running => "running",
        StageState::Failed => "failed",
        StageState::Waiting => "waiting",
    };
    let seconds = stage.seconds.map_or(String::new(), duration);
    let loss = stage
        .loss
        .map_or(String::new(), |loss| format!("{loss:.4}"));
    [
        plain(&stage.name),
        plain(&stage.job),
        state.into(),
        seconds,
        loss,
    ]
}

fn training_text(training: &TrainingReport, eta_s: Option<f64>) -> String {
    let job = training.job.as_deref().unwrap_or("training");
    let steps = match training.n_planned {
        Some(planned) => {
            let percent = 100.0 * training.n_steps as f64 / planned.max(1) as f64;
            let (done, planned) = (grouped(training.n_steps), grouped(planned));
            format!("step {done} of {planned} ({percent:.0} %)")
        }
        None => format!("step {}", grouped(training.n_steps)),
    };
    let eta = eta_s.map_or(String::new(), |eta_s| {
        format!(", {} to go", duration(eta_s))
    });
    let speed = format!(
        "{} tokens, {:.0} tokens/s",
        grouped(training.n_tokens),
        training.tokens_per_second
    );
    let mut lines = vec![format!(
        "{} ({})  {steps}, {speed}{eta}",
        plain(&training.name),
        plain(job)
    )];
    let (now, spark) = (loss_text(training.loss), sparkline(&training.curve));
    lines.push(format!("loss     {now}  {spark}"));
    if let Some(best) = training.best {
        let now = loss_text(training.held_out_loss);
        let spark = sparkline(&training.held_out);
        let (loss, step) = (best.loss, grouped(best.step));
        lines.push(format!(
            "held out {now}  {spark}  best {loss:.4} at step {step}"
        ));
    }
    if training.n_skipped > 0 {
        let n_skipped = grouped(training.n_skipped);
        lines.push(format!("skipped  {n_skipped} steps that changed nothing"));
    }
    lines.join("\n")
}

fn loss_text(loss: Option<f64>) -> String {
    loss.map_or("-".to_owned(), |loss| format!("{loss:.4}"))
}

/// Losses as blocks of eight heights.
fn sparkline(points: &[Point]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let losses: Vec<f64> = points.iter().filter_map(|point| point.loss).collect();
    let run = losses.len().div_ceil(SPARK_WIDTH).max(1);
    let means: Vec<f64> = losses
        .chunks(run)
        .map(|run| run.iter().sum::<f64>() / run.len() as f64)
        .collect();
    let min = means.iter().copied().fold(f64::INFINITY, f64::min);
    let max = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut line = String::new();
    for mean in means {
        let height = if max > min {
            (mean - min) / (max - min) * 7.0
        } else {
            0.0
        };
        line.extend(BLOCKS.get(height.round() as usize));
    }
    line
}

/// 7384 s as 2 h 03 min.
pub(in crate::output) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// Names out of files steer no terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '·' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_become_blocks_and_seconds_become_words() {
        let point = |loss| Point { tokens: 0.0, loss };
        assert_eq!(
            sparkline(&[
                point(Some(8.0)),
                point(None),
                point(Some(1.0)),
                point(Some(4.0))
            ]),
            "█▁▄"
        );
        assert_eq!(sparkline(&[point(Some(2.0))]), "▁");
        assert_eq!(sparkline(&[]), "");
        let words: Vec<String> = [0.25, 75.0, 150.0, 7384.0]
            .into_iter()
            .map(duration)
            .collect();
        assert_eq!(words, ["0.2 s", "75 s", "2 min 30 s", "2 h 03 min"]);
        assert_eq!(plain("a\x1b[2Jb"), "a·[2Jb");
    }
}
