//! A comparison as Markdown.

use super::comparison::{Comparison, Measured, Row};

/// `compare.md`: the rows as a table, the best of each column in bold, then what failed and what the checks say.
pub fn comparison_markdown(comparison: &Comparison) -> String {
    let mut text = format!("# {}\n\n", plain(comparison.title.as_deref().unwrap_or("Comparison")));
    let n_seeds = comparison.seeds.len();
    if let Some(model) = &comparison.model {
        let seeds =
            if n_seeds > 1 { format!(", mean ± standard deviation over {n_seeds} seeds") } else { String::new() };
        text += &format!("Of {}{seeds}.\n\n", plain(model));
    }
    let titles = comparison.columns.iter().map(|column| plain(column.title()));
    text += &line(std::iter::once(String::new()).chain(titles));
    let rules = std::iter::once("---".to_owned()).chain(comparison.columns.iter().map(|_| "---:".to_owned()));
    text += &line(rules);
    for row in &comparison.rows {
        text += &line(std::iter::once(plain(row.title())).chain(cells(comparison, row)));
    }
    let failed: Vec<&Row> = comparison.rows.iter().filter(|row| row.is_failed()).collect();
    if !failed.is_empty() {
        text += "\n## Failed\n\n";
        for row in failed {
            text +=
                &format!("- {}: {}\n", plain(row.title()), plain(row.error.as_deref().unwrap_or("no reason given")));
        }
    }
    if !comparison.checks.is_empty() {
        text += "\n## Checks\n\n";
        for check in &comparison.checks {
            let verdict = check.holds.map_or("cannot be told", |holds| if holds { "holds" } else { "does not hold" });
            let detail = check.detail.as_deref().filter(|detail| !detail.is_empty());
            let detail = detail.map_or(String::new(), |detail| format!(" ({})", plain(detail)));
            text += &format!("- {}: **{verdict}**{detail}\n", plain(&check.says));
        }
    }
    for ratio in &comparison.ratios {
        text += &format!("\n## Tokens of the reference for the same {}\n\n", plain(&ratio.by));
        for point in &ratio.points {
            let tokens = point.n_tokens.map_or("–".to_owned(), number);
            text +=
                &format!("- {}: {tokens} tokens, the reference {} times as many\n", plain(&point.row), point.words());
        }
    }
    text
}

fn cells(comparison: &Comparison, row: &Row) -> impl Iterator<Item = String> {
    comparison.columns.iter().map(|column| {
        let Some(measured) = row.values.get(&column.key) else { return "–".to_owned() };
        let text = number_of(measured);
        let is_best = measured.mean.is_some() && measured.mean == comparison.best(column);
        if is_best { format!("**{text}**") } else { text }
    })
}

fn number_of(measured: &Measured) -> String {
    let Some(mean) = measured.mean else { return "–".into() };
    let text = number(mean);
    let digits = text.split_once('.').map_or(0, |(_, digits)| digits.len());
    match measured.std {
        Some(std) if std > 0.0 && text.contains('e') => format!("{text} ± {std:.1e}"),
        Some(std) if std > 0.0 => format!("{text} ± {std:.digits$}"),
        _ => text,
    }
}

fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if x.fract() == 0.0 && size < 1e15 => format!("{x:.0}"),
        size if !(1e-3..1e6).contains(&size) => format!("{x:.3e}"),
        size if size >= 1000.0 => format!("{x:.0}"),
        _ => format!("{x:.4}"),
    }
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// On one line, with nothing that Markdown or HTML would take for its own.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        match c {
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            '&' => plain.push_str("&amp;"),
            '|' | '*' | '`' | '[' | ']' | '\\' | '_' | '#' | '!' => plain.extend(['\\', c]),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_become_a_table_and_nothing_leaves_its_cell() {
        let comparison: Comparison = serde_json::from_value(json!({
            "title": "Losses", "model": "m", "seeds": [0, 1],
            "columns": [{ "key": "loss", "better": "lower" }, { "key": "n_params", "title": "parameters" }],
            "rows": [
                { "name": "a|b\n<i>", "values": { "loss": { "mean": 0.5, "std": 0.25 }, "n_params": { "mean": 1200.0 } } },
                { "name": "c", "status": "failed", "error": "out of memory" },
            ],
            "checks": [{ "says": "a is best", "holds": true, "detail": "0.5" }, { "says": "?" }],
        }))
        .unwrap();
        let expected = "# Losses\n\nOf m, mean ± standard deviation over 2 seeds.\n\n\
            |  | loss | parameters |\n| --- | ---: | ---: |\n| a\\|b &lt;i&gt; | **0.5000 ± 0.2500** | 1200 |\n| c | – | – |\n\n\
            ## Failed\n\n- c: out of memory\n\n## Checks\n\n- a is best: **holds** (0.5)\n- ?: **cannot be told**\n";
        assert_eq!(comparison_markdown(&comparison), expected);
    }
}
