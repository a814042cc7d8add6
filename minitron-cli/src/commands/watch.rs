use std::thread::sleep;
use std::time::Duration;

use minitron_core::error::{Error, Result};
use minitron_engine::report::watch;
use serde_json::json;

use crate::args::{Common, Watch};
use crate::output;

pub fn run(common: &Common, args: &Watch) -> Result<()> {
    if !(0.1..=86_400.0).contains(&args.interval) {
        return Err(Error::Recipe(format!(
            "--interval: expected 0.1 to 86400 seconds, got {}",
            args.interval
        )));
    }
    let mut screen = output::Screen::default();
    loop {
        let progress = watch(&args.dir)?;
        let is_last = args.once || progress.complete;
        let still = match common.json {
            true => screen.draw(&json!(progress).to_string(), false)?,
            false => screen.draw(&output::progress_text(&progress), true)?,
        };
        if is_last || !still {
            return Ok(());
        }
        sleep(Duration::from_secs_f64(args.interval));
    }
}
