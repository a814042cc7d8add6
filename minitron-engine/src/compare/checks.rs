//! What a comparison says of its rows: which checks hold, and how many tokens some rows save.

use serde_json::{Value, json};

use super::spec::{Check, Ratio, Spec};
use super::table::{TableLine, better};
use crate::search::Predicate;
use minitron_core::error::Result;

/// Whether what should hold does, with the numbers; null where a row has none.
pub(super) fn checks(spec: &Spec, lines: &[TableLine]) -> Vec<Value> {
    let mut answers = Vec::with_capacity(spec.checks.len());
    for check in &spec.checks {
        answers.push(answer(check, lines).unwrap_or_else(
            |e| json!({ "says": check.says, "holds": null, "detail": e.to_string() }),
        ));
    }
    answers
}

fn answer(check: &Check, lines: &[TableLine]) -> Result<Value> {
    let predicate = Predicate::parse(&check.holds)?;
    let (mut numbers, mut is_known) = (Vec::new(), true);
    for name in predicate.names() {
        match mean_of(name, lines) {
            Some(value) => numbers.push(format!("{name} {value:.4}")),
            None => {
                numbers.push(format!("{name} -"));
                is_known = false;
            }
        }
    }
    let holds = if is_known {
        Some(predicate.holds(&|name| mean_of(name, lines))?)
    } else {
        None
    };
    Ok(json!({ "says": check.says, "holds": holds, "detail": numbers.join(", ") }))
}

/// What `ROW.COLUMN` stands for.
fn mean_of(name: &str, lines: &[TableLine]) -> Option<f64> {
    let (row, column) = name.split_once('.')?;
    let line = lines.iter().find(|line| line.name == row)?;
    line.values.get(column).map(|over| over.mean)
}

/// For each row of a ratio, the tokens that the reference needs to come as far.
pub(super) fn ratios(spec: &Spec, lines: &[TableLine]) -> Vec<Value> {
    let mut ratios = Vec::with_capacity(spec.ratios.len());
    for ratio in &spec.ratios {
        ratios.push(json!({ "by": ratio.by, "points": points(ratio, lines) }));
    }
    ratios
}

fn points(ratio: &Ratio, lines: &[TableLine]) -> Vec<Value> {
    let by = ratio.by.as_str();
    // What is compared falls with tokens.
    let sign = if better(by) == Some("higher") {
        -1.0
    } else {
        1.0
    };
    let mut reference = Vec::new();
    for name in &ratio.reference {
        if let Some((tokens, reached)) = reached(name, by, lines) {
            reference.push((tokens, sign * reached));
        }
    }
    reference.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut points = Vec::new();
    for name in &ratio.rows {
        let Some((tokens, reached)) = reached(name, by, lines) else {
            continue;
        };
        let mut point = json!({ "row": name, "n_tokens": tokens, by: reached });
        let needed = tokens_to(sign * reached, &reference).beside(tokens);
        if let (Some(point), Value::Object(needed)) = (point.as_object_mut(), needed) {
            point.extend(needed);
        }
        points.push(point);
    }
    points
}

/// The tokens of a row, and the column's value that they led to.
fn reached(name: &str, by: &str, lines: &[TableLine]) -> Option<(f64, f64)> {
    let values = &lines.iter().find(|line| line.name == name)?.values;
    Some((values.get("n_tokens")?.mean, values.get(by)?.mean))
}

/// How many tokens a reference needs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Needed {
    About(f64),
    /// Its largest budget does not come so far.
    MoreThan(f64),
    /// Its smallest budget comes farther.
    AtMost(f64),
    Unknown,
}

impl Needed {
    /// With the ratio to a row's own tokens, as the report has it.
    fn beside(self, tokens: f64) -> Value {
        match self {
            Needed::About(n) => json!({ "reference_tokens": n, "ratio": n / tokens }),
            Needed::MoreThan(most) => {
                json!({ "reference_more_than": most, "ratio_more_than": most / tokens })
            }
            Needed::AtMost(least) => {
                json!({ "reference_at_most": least, "ratio_at_most": least / tokens })
            }
            Needed::Unknown => json!({}),
        }
    }
}

/// Between two budgets that end above and below, on a straight line over the logarithm of tokens.
fn tokens_to(wanted: f64, reference: &[(f64, f64)]) -> Needed {
    let (Some(first), Some(last)) = (reference.first(), reference.last()) else {
        return Needed::Unknown;
    };
    if first.1 <= wanted {
        return Needed::AtMost(first.0);
    }
    let crossing = reference.windows(2).find(|pair| pair[1].1 <= wanted);
    let Some([(from, above), (to, below)]) =
        crossing.and_then(|pair| <[(f64, f64); 2]>::try_from(pair).ok())
    else {
        return Needed::MoreThan(last.0);
    };
    let share = (above - wanted) / (above - below);
    Needed::About((from.ln() + share * (to.ln() - from.ln())).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_between_its_budgets() {
        let reference = [(1e6, 4.0), (4e6, 3.0), (16e6, 2.5)];
        let Needed::About(half) = tokens_to(3.5, &reference) else {
            panic!("between")
        };
        assert!((half - 2e6).abs() < 1.0, "{half}");
        assert_eq!(tokens_to(2.0, &reference), Needed::MoreThan(16e6));
        assert_eq!(tokens_to(4.5, &reference), Needed::AtMost(1e6));
        assert_eq!(tokens_to(1.0, &[]), Needed::Unknown);
    }
}
