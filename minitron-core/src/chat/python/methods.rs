//! Methods of Python's strings, dictionaries and lists.

use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// What is called where the engine knows no method.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    unknown_method_callback(state, value, method, args)
}
