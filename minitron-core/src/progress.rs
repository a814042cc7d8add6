//! Where long work reports to; the command line draws it.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Receives the progress of one job after another.
pub trait Progress: Debug + Send + Sync {
    /// A job of `total` units (tokens, mostly) begins.
    fn start(&self, what: &str, total: u64);

    /// `n` more are done; `note` is for example the current loss.
    fn advance(&self, n: u64, note: &str);

    /// The job is done.
    fn finish(&self);

    /// How far the work is, in words: hidden where a person wants quiet.
    fn note(&self, message: &str);

    /// Something a person should know that is no error: shown always.
    fn warn(&self, message: &str);

    /// What was warned of so far, where it is kept.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Reports to nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _what: &str, _total: u64) {}
    fn advance(&self, _n: u64, _note: &str) {}
    fn finish(&self) {}
    fn note(&self, _message: &str) {}
    fn warn(&self, _message: &str) {}
}

/// Told of all warnings when one is added.
type Listener<'a> = dyn Fn(&[String]) + Sync + 'a;

/// Passes everything on and keeps the warnings; one that is repeated is passed on and kept once.
pub struct Recorder<'a> {
    inner: &'a dyn Progress,
    state: Mutex<Recorded>,
    listener: Option<&'a Listener<'a>>,
}

#[derive(Debug, Default)]
struct Recorded {
    kept: Vec<String>,
    passed_on: BTreeSet<String>,
}

impl<'a> Recorder<'a> {
    /// Nothing kept yet.
    pub fn new(inner: &'a dyn Progress) -> Self {
        Recorder {
            inner,
            state: Mutex::default(),
            listener: None,
        }
    }

    /// With the warnings of an earlier process, which a repetition does not add to; `listener` is
    /// told of each new one.
    pub fn continued(
        inner: &'a dyn Progress,
        kept: Vec<String>,
        listener: &'a Listener<'a>,
    ) -> Self {
        let state = Recorded {
            kept,
            passed_on: BTreeSet::new(),
        };
        Recorder {
            inner,
            state: Mutex::new(state),
            listener: Some(listener),
        }
    }
}

impl Debug for Recorder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("inner", &self.inner)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Progress for Recorder<'_> {
    fn start(&self, what: &str, total: u64) {
        self.inner.start(what, total);
    }

    fn advance(&self, n: u64, note: &str) {
        self.inner.advance(n, note);
    }

    fn finish(&self) {
        self.inner.finish();
    }

    fn note(&self, message: &str) {
        self.inner.note(message);
    }

    fn warn(&self, message: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !state.kept.iter().any(|kept| kept == message);
        if is_new {
            state.kept.push(message.to_owned());
        }
        let is_first = state.passed_on.insert(message.to_owned());
        let kept = state.kept.clone();
        drop(state);
        if is_first {
            self.inner.warn(message);
        }
        if let Some(listener) = self.listener.filter(|_| is_new) {
            listener(&kept);
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kept
            .clone()
    }
}

/// How a person ends long work early. Only work that can be gone on with listens; whoever catches
/// signals asks it through the two flags, and ends other work at once.
#[derive(Debug, Clone)]
pub struct Interrupt {
    /// Set where the work that listens is to finish its step, keep what it has and return.
    pub asked: Arc<AtomicBool>,
    /// Unset while such work is under way.
    pub deaf: Arc<AtomicBool>,
}

impl Default for Interrupt {
    fn default() -> Self {
        Interrupt {
            asked: Arc::new(AtomicBool::new(false)),
            deaf: Arc::new(AtomicBool::new(true)),
        }
    }
}

/// Work listens as long as this lives.
#[derive(Debug)]
pub struct Listening<'a>(&'a Interrupt);

impl Interrupt {
    /// Work that can be gone on with begins.
    pub fn listen(&self) -> Listening<'_> {
        self.deaf.store(false, Ordering::SeqCst);
        Listening(self)
    }

    /// Whether the work is to end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.deaf.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_that_is_repeated_is_passed_on_and_kept_once() {
        let heard = Mutex::new(Vec::new());
        let outer = Recorder::new(&Silent);
        let listener = |kept: &[String]| heard.lock().unwrap().push(kept.len());
        let inner = Recorder::continued(&outer, vec!["of an earlier process".into()], &listener);
        for message in ["of an earlier process", "a", "b", "a"] {
            inner.warn(message);
        }
        inner.note("no warning");
        assert_eq!(inner.warnings(), ["of an earlier process", "a", "b"]);
        // What an earlier process said is said again by this one.
        assert_eq!(outer.warnings(), ["of an earlier process", "a", "b"]);
        assert_eq!(*heard.lock().unwrap(), [2, 3]);
        assert_eq!(Silent.warnings(), Vec::<String>::new());
    }
}
