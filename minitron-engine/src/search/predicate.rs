//! Questions that people write: `hidden % 128 == 0 && mlp >= 2 * hidden`.

use std::str::FromStr;

use exmex::{BinOp, Express, FlatEx, MakeOperators, Operator};

use minitron_core::error::{Error, Result};

/// A question about named numbers: arithmetic on real numbers (`+ - * / %`), comparisons, `&&`,
/// `||`, parentheses; each binds tighter than those named after it. A name with anything but
/// letters, digits and `_` stands in braces: `{width.loss} < {depth.loss}`.
#[derive(Debug)]
pub struct Predicate {
    text: String,
    expression: FlatEx<Answer, Operators>,
}

/// What a part of a question comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Answer {
    Number(f64),
    Truth(bool),
    /// Truth was added, or numbers were joined.
    #[default]
    Nonsense,
}

impl FromStr for Answer {
    type Err = std::num::ParseFloatError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Answer::Number)
    }
}

fn number(a: Answer, b: Answer, of: impl Fn(f64, f64) -> f64) -> Answer {
    match (a, b) {
        (Answer::Number(a), Answer::Number(b)) => Answer::Number(of(a, b)),
        _ => Answer::Nonsense,
    }
}

fn compared(a: Answer, b: Answer, of: impl Fn(f64, f64) -> bool) -> Answer {
    match (a, b) {
        (Answer::Number(a), Answer::Number(b)) => Answer::Truth(of(a, b)),
        _ => Answer::Nonsense,
    }
}

fn joined(a: Answer, b: Answer, of: impl Fn(bool, bool) -> bool) -> Answer {
    match (a, b) {
        (Answer::Truth(a), Answer::Truth(b)) => Answer::Truth(of(a, b)),
        _ => Answer::Nonsense,
    }
}

/// With the precedences that programming languages share.
#[derive(Debug, Clone)]
struct Operators;

impl MakeOperators<Answer> for Operators {
    fn make<'a>() -> Vec<Operator<'a, Answer>> {
        vec![
            binary("||", 0, |a, b| joined(a, b, |a, b| a || b)),
            binary("&&", 1, |a, b| joined(a, b, |a, b| a && b)),
            binary("==", 2, |a, b| compared(a, b, |a, b| a == b)),
            binary("!=", 2, |a, b| compared(a, b, |a, b| a != b)),
            binary("<=", 2, |a, b| compared(a, b, |a, b| a <= b)),
            binary(">=", 2, |a, b| compared(a, b, |a, b| a >= b)),
            binary("<", 2, |a, b| compared(a, b, |a, b| a < b)),
            binary(">", 2, |a, b| compared(a, b, |a, b| a > b)),
            binary("+", 3, |a, b| number(a, b, |a, b| a + b)),
            Operator::make_bin_unary("-", operation(3, difference), negative),
            binary("*", 4, |a, b| number(a, b, |a, b| a * b)),
            binary("/", 4, |a, b| number(a, b, |a, b| a / b)),
            binary("%", 4, |a, b| number(a, b, |a, b| a % b)),
        ]
    }
}

type Apply = fn(Answer, Answer) -> Answer;

fn binary(word: &str, prio: i64, apply: Apply) -> Operator<'_, Answer> {
    Operator::make_bin(word, operation(prio, apply))
}

fn operation(prio: i64, apply: Apply) -> BinOp<Answer> {
    BinOp {
        apply,
        prio,
        is_commutative: false,
    }
}

fn difference(a: Answer, b: Answer) -> Answer {
    number(a, b, |a, b| a - b)
}

fn negative(a: Answer) -> Answer {
    difference(Answer::Number(0.0), a)
}

impl Predicate {
    /// Reads one.
    ///
    /// # Errors
    /// `Recipe` with what the parser says, or where what it reads is no question.
    pub fn parse(text: &str) -> Result<Self> {
        let expression = FlatEx::parse(text).map_err(|e| wrong(text, &e.to_string()))?;
        let predicate = Predicate {
            text: text.to_owned(),
            expression,
        };
        predicate.holds(&|_| Some(1.0))?;
        Ok(predicate)
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
        let text = &self.text;
        let mut values = Vec::new();
        for name in self.names() {
            let found = value(name);
            let found = found.ok_or_else(|| wrong(text, &format!("there is no `{name}`")))?;
            values.push(Answer::Number(found));
        }
        let answer = self.expression.eval(&values);
        match answer.map_err(|e| wrong(text, &e.to_string()))? {
            Answer::Truth(holds) => Ok(holds),
            Answer::Number(_) => Err(wrong(text, "expected a comparison, got a number")),
            Answer::Nonsense => {
                let message = "expected comparisons of numbers, joined by && or ||";
                Err(wrong(text, message))
            }
        }
    }
}

fn wrong(text: &str, message: &str) -> Error {
    Error::Recipe(format!("`{text}`: {message}"))
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
        for yes in [
            "hidden % 128 == 0 && mlp >= 2 * hidden",
            "mlp >= hidden && hidden > 100",
            "{a.loss} + 1 < hidden",
            "mlp / hidden > 2.4",
            "hidden < 1 || mlp > 600 && hidden > 200",
            "-hidden < 1 - 2 - 3",
            "mlp - hidden - 100 == 284",
            "(hidden < 1 || mlp > 600) && hidden != 255",
        ] {
            assert!(ask(yes).unwrap(), "{yes}");
        }
        for no in [
            "mlp > 3*hidden || {a.loss} > 2",
            "hidden > 300 && mlp > 1 || mlp < 2",
            "mlp % 100 == 0",
        ] {
            assert!(!ask(no).unwrap(), "{no}");
        }
        for (bad, says) in [
            ("hidden +", "hidden +"),
            ("hidden", "comparison"),
            ("heads > 1", "no `heads`"),
            ("", ""),
            ("hidden && mlp > 1", "joined"),
            ("(hidden > 1) + 1 > 0", "comparisons"),
        ] {
            let error = ask(bad).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains(says),
                "{bad}: {error}"
            );
        }
    }
}
