//! Records that cannot be scored do not cost the others.

use std::path::Path;

use minitron_core::contract::{Measurements, Subject};
use minitron_core::error::{Error, Result};

/// Counts records that cannot be scored.
#[derive(Debug)]
pub(super) struct Skipped {
    is_strict: bool,
    n: usize,
    first: Option<Error>,
}

impl Skipped {
    /// With `is_strict`, the first of them is an error.
    pub fn new(is_strict: bool) -> Self {
        Skipped {
            is_strict,
            n: 0,
            first: None,
        }
    }

    /// What was made of a record; none where its content is at fault.
    ///
    /// # Errors
    /// All that is not the fault of a record.
    pub fn take<T>(&mut self, made: Result<T>) -> Result<Option<T>> {
        match made {
            Ok(made) => Ok(Some(made)),
            Err(error) if error.kind() == "data" && !self.is_strict => {
                self.n += 1;
                self.first.get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The first one's error, where nothing is left to score.
    ///
    /// # Errors
    /// That error.
    pub fn check(&mut self, n_left: usize, path: &Path) -> Result<()> {
        match (n_left, self.first.take()) {
            (0, Some(first)) => Err(first),
            (0, None) => Err(Error::Data(format!(
                "{}: no questions in it",
                path.display()
            ))),
            (_, first) => {
                self.first = first;
                Ok(())
            }
        }
    }

    /// Says how many there were, with the first; `n_skipped` stands in the result where there were
    /// some.
    pub fn report(self, subject: &Subject, path: &Path, measured: &mut Measurements) {
        let Some(first) = self.first else { return };
        let what = match self.n {
            1 => "1 record was".to_owned(),
            n => format!("{n} records were"),
        };
        let message = format!(
            "{}: {what} skipped, which cannot be scored; the first: {}; with strict=true, one ends \
             the evaluation",
            path.display(),
            first.message()
        );
        subject.progress.warn(&message);
        measured.insert("n_skipped".to_owned(), self.n as f64);
    }
}
