//! A bar on terminals, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use minitron_core::progress::Progress;

/// Seconds between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Where events come from that people were told of already.
pub(in crate::output) const SAID: &str = "minitron::said";

/// The bar that is drawn now.
static DRAWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// A line on stderr, above the bar where one is drawn.
pub(in crate::output) fn say(line: &str) {
    let drawn = DRAWN.lock().unwrap_or_else(PoisonError::into_inner);
    match drawn.as_ref() {
        Some(bar) => bar.suspend(|| write_line(line)),
        None => write_line(line),
    }
}

/// Nobody reads a stderr that cannot be written.
fn write_line(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Draws progress on stderr.
#[derive(Debug)]
pub struct Bar {
    quiet: bool,
    terminal: bool,
    state: Mutex<Option<BarState>>,
}

#[derive(Debug)]
struct BarState {
    bar: ProgressBar,
    what: String,
    total: u64,
    done: u64,
    /// Done before this process began to count (a resumed run), and when it did.
    first: Option<(u64, Instant)>,
    said: Instant,
}

impl Bar {
    /// Without bars and notes where `quiet`; warnings are shown all the same.
    pub fn new(quiet: bool) -> Self {
        Bar {
            quiet,
            terminal: io::stderr().is_terminal(),
            state: Mutex::new(None),
        }
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, total: u64) {
        let bar = if self.quiet || !self.terminal {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(total)
        };
        let template = "{prefix} {wide_bar:.cyan/dim} {percent:>3} % of {human_len}  {per_sec}  \
                        ETA {eta}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(what.to_owned());
        *DRAWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        let state = BarState {
            bar,
            what: what.to_owned(),
            total,
            done: 0,
            first: None,
            said: Instant::now(),
        };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    fn advance(&self, n: u64, note: &str) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = guard.as_mut() else { return };
        state.done = state.done.saturating_add(n);
        state.bar.set_message(note.to_owned());
        state.bar.inc(n);
        if state.first.is_none() {
            // What was done before counts for no speed.
            state.bar.reset_eta();
        }
        let (first, begin) = *state.first.get_or_insert((state.done, Instant::now()));
        if self.quiet || self.terminal || state.said.elapsed() < LINE_EVERY {
            return;
        }
        state.said = Instant::now();
        let rate =
            state.done.saturating_sub(first) as f64 / begin.elapsed().as_secs_f64().max(1e-9);
        let left = state.total.saturating_sub(state.done) as f64 / rate.max(1e-9);
        let (what, done, total) = (&state.what, state.done, state.total);
        say(&format!(
            "{what}: {done}/{total}  {rate:.0}/s  ETA {left:.0} s  {note}"
        ));
    }

    fn finish(&self) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = guard.take() {
            state.bar.finish_and_clear();
            *DRAWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            say(message);
        }
        tracing::info!(target: SAID, "{message}");
    }

    fn warn(&self, message: &str) {
        super::warn(message);
        tracing::warn!(target: SAID, "{message}");
    }
}
