//! What a namespace may keep. It is the one thing that templates can change, so the one way by
//! which a loop makes data without end: lists in lists, lists that are the sum of themselves, or a
//! namespace that holds itself.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::printing::too_deep;

/// Called on what is assigned to an attribute.
pub(in super::super) const FUNCTION: &str = "__kept__";

const DEEPEST: usize = 100;

/// The value, its lists made where they were only promised.
pub(super) fn kept(state: &State, value: Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                items.push(item?);
            }
            Value::from(items)
        }
        _ => value,
    };
    check(state, &value, 0)?;
    Ok(value)
}

fn check(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for (idx, item) in value.try_iter()?.checked().enumerate() {
                state.consume_fuel(u64::from(idx & 7 == 0))?;
                check(state, &item?, depth + 1)?;
            }
            Ok(())
        }
        ValueKind::Map if is_namespace(value) => Err(Error::new(
            ErrorKind::InvalidOperation,
            "a namespace cannot be kept in another",
        )),
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                check(state, &value.get_item(&key?)?, depth + 1)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn is_namespace(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("::Namespace"))
}
