//! The only place that prints: results on stdout, everything else on stderr.

mod log;
mod progress;
mod report;
mod tables;
mod watch;

pub use log::Lines;
pub use progress::Bar;
pub use report::{PAGE_MARK, page};
pub use tables::{
    blocks_table, comparison_table, facts_table, generated_text, inspect_table, plan_table,
    plugin_table, plugins_table, run_table, scores_table, search_table, verify_table,
};
pub use watch::{Screen, progress_text};

use minitron_core::error::{Error, Result};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::sync::OnceLock;

/// Which of how many ranks this process is.
static SPEAKER: OnceLock<(usize, usize)> = OnceLock::new();

/// Says once which of how many ranks this process is: of several the first prints results, and
/// errors say whose they are.
pub fn speak_as(rank: usize, n_ranks: usize) {
    let _ = SPEAKER.set((rank, n_ranks));
}

fn speaker() -> (usize, usize) {
    SPEAKER.get().copied().unwrap_or((0, 1))
}

/// Prints a result: JSON, or the table drawn from it. A reader that has gone away is no error.
pub fn show(json: bool, report: &Value, draw: impl FnOnce(&Value) -> String) -> Result<()> {
    if speaker().0 > 0 {
        return Ok(());
    }
    let text = if json {
        report.to_string()
    } else {
        draw(report)
    };
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

/// Says on stderr that a run was interrupted, and which command goes on with it.
pub fn say_how_to_go_on(report: &Value, command: &str) {
    if report["interrupted"] == true && speaker().0 == 0 {
        let _ = writeln!(
            io::stderr().lock(),
            "interrupted; all that was done is saved: go on with {command}"
        );
    }
}

/// Warns on stderr where no job does.
pub fn warn(message: &str) {
    progress::say(&format!("warning: {message}"));
}

/// Passes on what waits to be printed. A reader that has gone away is no error.
pub fn flush() {
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
}

/// Prints an error and gives its exit code: 2 for a wrong request, 1 for a failed run. With `json`,
/// also an object on stdout.
pub fn fail(error: &Error, json: bool) -> i32 {
    let exit_code = if error.is_usage() { 2 } else { 1 };
    let (rank, n_ranks) = speaker();
    let whose = match n_ranks {
        1 => String::new(),
        _ => format!("rank {rank}: "),
    };
    let _ = writeln!(io::stderr().lock(), "error: {whose}{error}");
    if json && rank == 0 {
        let mut about = json!({ "kind": error.kind(), "message": error.message() });
        if let Some(path) = error.path() {
            about["path"] = json!(path);
        }
        if let Some(place) = error.place() {
            about["place"] = json!(place);
        }
        say_object(about, exit_code);
    }
    i32::from(exit_code)
}

/// What was typed and cannot be read: in the parser's words, and with `json` as an object too. Help
/// and version are no refusals.
pub fn refuse(refusal: &clap::Error, json: bool) -> i32 {
    // A reader that has gone away is no error.
    let _ = refusal.print();
    if !refusal.use_stderr() {
        return 0;
    }
    if json {
        let said = refusal.to_string();
        let usage = said.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = usage
            .trim_start_matches("error: ")
            .split_whitespace()
            .collect();
        say_object(json!({ "kind": "usage", "message": words.join(" ") }), 2);
    }
    2
}

fn say_object(mut about: Value, exit_code: u8) {
    about["exit_code"] = json!(exit_code);
    let _ = writeln!(io::stdout().lock(), "{}", json!({ "error": about }));
}
