use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    let launch = Launch {
        program,
        args: words.to_vec(),
        n_ranks: args.nproc.get(),
        max_restarts: args.max_restarts,
        // What a lost rank had of a search is done by the others.
        tolerates_losses: words.iter().any(|word| word == "search"),
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
