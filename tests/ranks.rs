#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

/// The same scores by one process and by several.
mod scoring;
/// The same training by one process and by several.
mod training;

use std::process::Output;

use minitron::Workspace;
use serde_json::Value;

/// A command as `n` ranks on this machine, or as one process.
fn words(n: usize, words: &str) -> String {
    match n {
        1 => words.to_owned(),
        _ => format!("launch --nproc {n} -- {words}"),
    }
}

/// Runs one that succeeds.
fn succeeds(workspace: &Workspace, n: usize, command: &str) -> Value {
    let output = run(workspace, n, &format!("{command} --json --quiet"));
    assert!(
        output.status.success(),
        "{n} ranks, {command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn run(workspace: &Workspace, n: usize, command: &str) -> Output {
    workspace.run(&words(n, command))
}
