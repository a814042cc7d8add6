use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use minitron_comm::launch::{Launch, Listener};
use minitron_core::error::{Error, Result};
use minitron_engine::ranks::of_comm;
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::args;
use crate::output;

/// Starts the ranks, and ends with the code of the one that failed first.
pub fn run(args: &args::Launch) -> Result<i32> {
    let program = std::env::current_exe().map_err(|e| Error::io("minitron", e))?;
    let words = match args.command.as_slice() {
        [first, rest @ ..] if first == "minitron" => rest,
        all => all,
    };
    // What no rank could read is said once.
    let command = match command_of(words) {
        Ok(command) => command,
        Err(refusal) => {
            return Ok(output::refuse(
                &refusal,
                words.iter().any(|it| it == "--json"),
            ));
        }
    };
    if !command.knows_ranks() {
        return Err(Error::Recipe(format!(
            "launch: `{}` is done by one process; start it without launch",
            command.name()
        )));
    }
    let launch = Launch {
        program,
        args: words.to_vec(),
        n_ranks: args.nproc.get(),
        max_restarts: args.max_restarts,
        tolerates_losses: command.tolerates_losses(),
        dir: None,
        variables: Vec::new(),
    };
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&asked))
            .map_err(|e| Error::io(format!("signal {signal}"), e))?;
    }
    let ended = launch.run(&mut Terminal(asked)).map_err(of_comm)?;
    Ok(ended.failed.map_or(0, |(_, code)| code))
}

/// What every rank will take the words for.
fn command_of(words: &[OsString]) -> std::result::Result<args::Command, clap::Error> {
    let name = OsString::from("minitron");
    let typed = std::iter::once(&name).chain(words);
    args::Arguments::try_parse_from(typed).map(|arguments| arguments.command)
}

/// Signals come from it, and words go to it.
struct Terminal(Arc<AtomicBool>);

impl Listener for Terminal {
    fn is_asked(&mut self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }

    fn say(&mut self, message: &str) {
        output::warn(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_named_like_a_command_is_no_command() {
        let of = |words: &str| {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            command_of(&words)
        };
        let training = of("train m --data t.txt --tokens 1K --out search").unwrap();
        assert!(training.knows_ranks() && !training.tolerates_losses());
        let searching = of("search m --scores s --tokens 1K --data t.txt --out train");
        assert!(searching.is_ok_and(|it| it.tolerates_losses()));
        assert!(!of("inspect m").unwrap().knows_ranks());
        assert!(of("train --no-such-flag").is_err());
    }
}
