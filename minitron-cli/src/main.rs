//! The command line: arguments in, a job of `minitron-engine`, a table or JSON out.

mod args;
mod commands;
mod hub;
mod observe;
mod output;
mod settings;

use std::ffi::OsStr;

use clap::Parser;

fn main() {
    let code = run();
    output::flush();
    // At the end libtorch takes every operator off its lists one by one, which lasts longer than
    // most commands. All that was begun here is done.
    signal_hook::low_level::exit(code)
}

fn run() -> i32 {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(refusal) => {
            return output::refuse(
                &refusal,
                std::env::args_os().any(|word| word == OsStr::new("--json")),
            );
        }
    };
    let json = arguments.common.json;
    let observing = match observe::start(&arguments.common) {
        Ok(observing) => observing,
        Err(error) => return output::fail(&error, json),
    };
    let code = match commands::dispatch(&arguments) {
        Ok(code) => code,
        Err(error) => output::fail(&error, json),
    };
    // What the file lacks is said after all else.
    drop(observing);
    code
}
