//! A bar on terminals, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use minitron_core::progress::Progress;

/// Seconds between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Draws progress on stderr.
#[derive(Debug)]
pub struct Bar {
    quiet: bool,
    terminal: bool,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    bar: ProgressBar,
    what: String,
    total: u64,
    done: u64,
    /// Done before this process began to count (a resumed run), and when it did.
    first: Option<(u64, Instant)>,
    said: Instant,
}

impl Bar {
    /// Silent where `quiet`.
    pub fn new(quiet: bool) -> Self {
        Bar { quiet, terminal: io::stderr().is_terminal(), state: Mutex::new(None) }
    }

    /// Says something between the bars.
    pub fn note(&self, message: &str) {
        if !self.quiet {
            let say = || _ = writeln!(io::stderr().lock(), "{message}");
            match self.state.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                Some(state) => state.bar.suspend(say),
                None => say(),
            }
        }
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, total: u64) {
        let bar = if self.quiet || !self.terminal { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let template = "{prefix} {wide_bar:.cyan/dim} {percent:>3} % of {human_len}  {per_sec}  ETA {eta}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(what.to_owned());
        let state = State { bar, what: what.to_owned(), total, done: 0, first: None, said: Instant::now() };
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
        let rate = state.done.saturating_sub(first) as f64 / begin.elapsed().as_secs_f64().max(1e-9);
        let left = state.total.saturating_sub(state.done) as f64 / rate.max(1e-9);
        let (what, done, total) = (&state.what, state.done, state.total);
        let _ = writeln!(io::stderr().lock(), "{what}: {done}/{total}  {rate:.0}/s  ETA {left:.0} s  {note}");
    }

    fn finish(&self) {
        if let Some(state) = self.state.lock().unwrap_or_else(PoisonError::into_inner).take() {
            state.bar.finish_and_clear();
        }
    }

    fn warn(&self, message: &str) {
        self.note(message);
    }
}
