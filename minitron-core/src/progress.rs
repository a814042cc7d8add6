//! Where long work reports to; the command line draws it.

use std::collections::BTreeSet;
use std::fmt::Debug;
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

/// Passes everything on, each warning once: for work that is done again and again.
#[derive(Debug)]
pub struct WarnsOnce<'a> {
    inner: &'a dyn Progress,
    warned: Mutex<BTreeSet<String>>,
}

impl<'a> WarnsOnce<'a> {
    /// In front of another.
    pub fn new(inner: &'a dyn Progress) -> Self {
        WarnsOnce { inner, warned: Mutex::default() }
    }
}

impl Progress for WarnsOnce<'_> {
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
        let is_new = self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(message.to_owned());
        if is_new {
            self.inner.warn(message);
        }
    }
}

/// How a person ends long work early. Only work that can be gone on with listens; whoever catches signals asks it through
/// the two flags, and ends other work at once.
#[derive(Debug, Clone)]
pub struct Interrupt {
    /// Set where the work that listens is to finish its step, keep what it has and return.
    pub asked: Arc<AtomicBool>,
    /// Unset while such work is under way.
    pub deaf: Arc<AtomicBool>,
}

impl Default for Interrupt {
    fn default() -> Self {
        Interrupt { asked: Arc::new(AtomicBool::new(false)), deaf: Arc::new(AtomicBool::new(true)) }
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
