//! The only place that prints: results on stdout, everything else on stderr.

mod progress;
mod report;
mod tables;
mod watch;

pub use progress::Bar;
pub use report::{PAGE_MARK, page};
pub use tables::{
    comparison_table, facts_table, generated_text, inspect_table, plan_table, plugin_table, plugins_table, run_table,
    scores_table, search_table, verify_table,
};
pub use watch::{Screen, progress_text};

use std::io::{self, Write};
use std::process::ExitCode;

use minitron_core::error::{Error, Result};
use serde_json::Value;

/// Prints a result: JSON, or the table drawn from it. A reader that has gone away is no error.
pub fn show(json: bool, report: &Value, draw: impl FnOnce(&Value) -> String) -> Result<()> {
    let text = if json { report.to_string() } else { draw(report) };
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

/// Says on stderr that a run was interrupted, and which command goes on with it.
pub fn say_how_to_go_on(report: &Value, command: &str) {
    if report["interrupted"] == true {
        let _ = writeln!(io::stderr().lock(), "interrupted; all that was done is saved: go on with {command}");
    }
}

/// Prints an error and gives its exit code: 2 for a wrong request, 1 for a failed run.
pub fn fail(error: &Error) -> ExitCode {
    let _ = writeln!(io::stderr().lock(), "error: {error}");
    ExitCode::from(if error.is_usage() { 2 } else { 1 })
}
