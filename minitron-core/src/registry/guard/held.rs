//! Values of a plugin's own types, and what a panic in its code said.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// A value of a plugin's own type: neither showing nor dropping it unwinds further than here.
pub(super) struct Held<T>(pub Option<T>);

impl<T> Held<T> {
    pub fn new(value: T) -> Self {
        Held(Some(value))
    }

    // It is gone in `drop` alone.
    pub fn get(&self) -> Result<&T> {
        self.0
            .as_ref()
            .ok_or_else(|| Error::Internal("a plugin was asked after its end".into()))
    }

    pub fn get_mut(&mut self) -> Result<&mut T> {
        self.0
            .as_mut()
            .ok_or_else(|| Error::Internal("a plugin was asked after its end".into()))
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        // Nobody waits for an answer here; what it panicked with went to the panic hook.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
            std::mem::forget(payload);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some(value) = &self.0 else {
            return f.write_str("dropped");
        };
        let is_pretty = f.alternate();
        // As a whole first: a formatter that a panic went through is left half written.
        let text = catch_unwind(AssertUnwindSafe(|| {
            if is_pretty {
                format!("{value:#?}")
            } else {
                format!("{value:?}")
            }
        }));
        match text {
            Ok(text) => f.write_str(&text),
            Err(payload) => write!(f, "<its Debug panicked: {}>", words(payload.as_ref())),
        }
    }
}

/// The message of a panic.
pub(super) fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}
