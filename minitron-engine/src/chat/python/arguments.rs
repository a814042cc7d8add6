//! Arguments by position or by name, as Python takes them.

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};

/// Asked for in the order of the function's parameters.
pub(super) struct CallArguments {
    given: std::vec::IntoIter<Value>,
    named: Kwargs,
}

impl CallArguments {
    pub(super) fn new(given: Rest<Value>, named: Kwargs) -> Self {
        CallArguments {
            given: given.0.into_iter(),
            named,
        }
    }

    /// `None` where it is not given, or none.
    pub(super) fn value(&mut self, name: &str) -> Result<Option<Value>, Error> {
        let value = match self.given.next() {
            Some(value) => Some(value),
            None => self.named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        let text = |value: Value| {
            value
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| wrong(name, "a string", &value))
        };
        self.value(name)?.map(text).transpose()
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, Error> {
        let integer = |value: Value| {
            i64::try_from(value.clone()).map_err(|_| wrong(name, "an integer", &value))
        };
        self.value(name)?.map(integer).transpose()
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Error> {
        Ok(self.value(name)?.is_some_and(|value| value.is_true()))
    }

    /// Refuses what nobody asked for.
    pub(super) fn end(mut self) -> Result<(), Error> {
        match self.given.next() {
            Some(_) => Err(ErrorKind::TooManyArguments.into()),
            None => self.named.assert_all_used(),
        }
    }
}

fn wrong(name: &str, what: &str, found: &Value) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!(
            "`{name}`: expected {what}, found a value of kind {}",
            found.kind()
        ),
    )
}
