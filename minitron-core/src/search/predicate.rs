//! Questions that people write: `hidden % 128 == 0 && mlp >= 2 * hidden`.

use exmex::{Express, FlatExVal, Val, parse_val};

use crate::error::{Error, Result};

/// A question about named numbers: arithmetic (`+ - * / % ^`), comparisons, `&&`, `||`, parentheses. A name with anything but
/// letters, digits and `_` stands in braces: `{width.loss} < {depth.loss}`.
#[derive(Debug)]
pub struct Predicate {
    text: String,
    expression: FlatExVal<i64, f64>,
}

impl Predicate {
    /// Reads one.
    ///
    /// # Errors
    /// `Recipe` with what the parser says.
    pub fn parse(text: &str) -> Result<Self> {
        let expression = parse_val::<i64, f64>(text).map_err(|e| Error::Recipe(format!("`{text}`: {e}")))?;
        Ok(Predicate { text: text.to_owned(), expression })
    }

    /// The names in it.
    pub fn names(&self) -> &[String] {
        self.expression.var_names()
    }

    /// Whether it holds where `value` says what each name is.
    ///
    /// # Errors
    /// `Recipe` for a name without a value, and where the answer is no yes or no.
    pub fn holds(&self, value: &dyn Fn(&str) -> Option<f64>) -> Result<bool> {
        let wrong = |message: String| Error::Recipe(format!("`{}`: {message}", self.text));
        let mut values = Vec::new();
        for name in self.names() {
            let found = value(name).ok_or_else(|| wrong(format!("there is no `{name}`")))?;
            // Remainders are of whole numbers.
            let is_whole = found.fract() == 0.0 && found.abs() < 9e15;
            values.push(if is_whole { Val::Int(found as i64) } else { Val::Float(found) });
        }
        let answer = self.expression.eval(&values).map_err(|e| wrong(e.to_string()))?;
        match answer {
            Val::Bool(holds) => Ok(holds),
            Val::Error(e) => Err(wrong(e.to_string())),
            other => Err(wrong(format!("expected a comparison, got the value {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_and_what_is_none_is_said() {
        let ask = |text: &str| {
            let value = |name: &str| match name {
                "hidden" => Some(256.0),
                "mlp" => Some(640.0),
                "a.loss" => Some(1.5),
                _ => None,
            };
            Predicate::parse(text)?.holds(&value)
        };
        assert!(ask("hidden % 128 == 0 && mlp >= 2 * hidden").unwrap());
        assert!(!ask("mlp > 3*hidden || {a.loss} > 2").unwrap());
        assert!(ask("{a.loss} + 1 < hidden").unwrap());
        for (bad, says) in [("hidden +", "hidden +"), ("hidden", "comparison"), ("heads > 1", "no `heads`"), ("", "")] {
            let error = ask(bad).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(says), "{bad}: {error}");
        }
    }
}
