#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

/// The same scores by one process and by several.
mod pruning;
mod scoring;
/// Candidates that ranks share out among them.
mod searching;
/// The same training by one process and by several.
mod training;

use std::ffi::OsString;
use std::process::Output;

use minitron::Workspace;
use minitron_comm::launch::{Launch, Listener};
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

/// A rank that is killed, once, as soon as a shell finds something true.
struct Victim<'a> {
    rank: usize,
    when: &'a str,
    max_restarts: u64,
    tolerates_losses: bool,
}

impl Victim<'_> {
    /// Two ranks of a command, of which one is killed; the launcher's code.
    fn launch(&self, workspace: &Workspace, words: &str) -> i32 {
        let (rank, when) = (self.rank, self.when);
        let script = format!(
            r#"if [ $RANK = {rank} ] && mkdir victim-{rank} 2>/dev/null; then
                "$@" & child=$!
                until {when}; do sleep 0.02; done
                kill -9 $child && touch victim-{rank}/killed; wait $child; exit 137
            fi; exec "$@""#
        );
        workspace.write("victim.sh", script);
        let program = workspace.command(words);
        let mut args: Vec<OsString> = vec!["victim.sh".into(), program.get_program().into()];
        args.extend(program.get_args().map(OsString::from));
        let launch = Launch {
            program: "sh".into(),
            args,
            n_ranks: 2,
            max_restarts: self.max_restarts,
            tolerates_losses: self.tolerates_losses,
            dir: Some(workspace.root().to_path_buf()),
            variables: vec![("OMP_NUM_THREADS".into(), "1".into())],
        };
        let ended = launch.run(&mut Deaf).unwrap();
        let killed = workspace.at(&format!("victim-{rank}/killed"));
        assert!(killed.exists(), "nobody was killed");
        ended.failed.map_or(0, |(_, code)| code)
    }
}

/// Hears nothing and says nothing.
struct Deaf;

impl Listener for Deaf {
    fn is_asked(&mut self) -> bool {
        false
    }

    fn say(&mut self, _message: &str) {}
}
