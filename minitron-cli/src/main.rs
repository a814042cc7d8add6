//! The command line: arguments in, a job of `minitron-engine`, a table or JSON out.

mod args;
mod commands;
mod hub;
mod observe;
mod output;
mod settings;

use std::ffi::OsStr;

use clap::Parser;
use minitron_comm::World;
use minitron_core::error::{Error, Result};
use minitron_engine::ranks::of_comm;

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
    let world = match world(&arguments.command) {
        Ok(world) => world,
        Err(error) => return output::fail(&error, json),
    };
    if world.has_others() && arguments.command.shards_layers() {
        minitron_torch::use_huge_pages();
    }
    output::speak_as(world.rank, world.size);
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

/// Who this process is among others, where the command can be done by several.
fn world(command: &args::Command) -> Result<World> {
    let world = World::from_env().map_err(of_comm)?;
    if world.has_others() && !command.knows_ranks() {
        let (name, size) = (command.name(), world.size);
        return Err(Error::Recipe(format!(
            "`{name}` is done by one process, and the environment says that there are {size} \
             (WORLD_SIZE or SLURM_NTASKS); start it without a launcher"
        )));
    }
    Ok(world)
}
