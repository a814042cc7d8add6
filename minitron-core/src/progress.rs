//! Where long work reports to; the command line draws it.

use std::fmt::Debug;

/// Receives the progress of one job after another.
pub trait Progress: Debug + Send + Sync {
    /// A job of `total` units (tokens, mostly) begins.
    fn start(&self, what: &str, total: u64);

    /// `n` more are done; `note` is for example the current loss.
    fn advance(&self, n: u64, note: &str);

    /// The job is done.
    fn finish(&self);

    /// Something a person should know that is no error.
    fn warn(&self, message: &str);
}

/// Reports to nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _what: &str, _total: u64) {}
    fn advance(&self, _n: u64, _note: &str) {}
    fn finish(&self) {}
    fn warn(&self, _message: &str) {}
}
