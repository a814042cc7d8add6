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
        let Some(value) = self.value(name)? else {
            return Ok(None);
        };
        match value.as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(wrong(name, "a string", &value)),
        }
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, Error> {
        let Some(value) = self.value(name)? else {
            return Ok(None);
        };
        match i64::try_from(value.clone()) {
            Ok(integer) => Ok(Some(integer)),
            Err(_) => Err(wrong(name, "an integer", &value)),
        }
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
