//! A comparison as Markdown.

use super::comparison::{Comparison, RowReport};
use super::units::{number, spread};
use super::warned::Warned;

/// `compare.md`: the original and the rows as a table, the best row of each column in bold, then
/// what failed, what was warned of and what the checks say.
pub fn comparison_markdown(comparison: &Comparison) -> String {
    let mut text = format!(
        "# {}\n\n",
        plain(comparison.title.as_deref().unwrap_or("Comparison"))
    );
    let n_seeds = comparison.seeds.len();
    if let Some(model) = &comparison.model {
        let seeds = if n_seeds > 1 {
            format!(", mean ± standard deviation over {n_seeds} seeds")
        } else {
            String::new()
        };
        text += &format!("Of {}{seeds}.\n\n", plain(model));
    }
    let titles = comparison
        .columns
        .iter()
        .map(|column| plain(column.title()));
    text += &line(std::iter::once(String::new()).chain(titles));
    let rules = std::iter::once("---".to_owned())
        .chain(comparison.columns.iter().map(|_| "---:".to_owned()));
    text += &line(rules);
    for row in comparison.all_rows() {
        text += &line(std::iter::once(plain(row.title())).chain(cells(comparison, row)));
    }
    text += &failures(comparison);
    let warnings = Warned::of_comparison(comparison);
    if !warnings.is_empty() {
        text += "\n## Warnings\n\n";
        warnings
            .iter()
            .for_each(|warned| text += &format!("- {}\n", plain(&warned.text())));
    }
    if !comparison.checks.is_empty() {
        text += "\n## Checks\n\n";
        for check in &comparison.checks {
            let verdict = check.holds.map_or("cannot be told", |holds| {
                if holds { "holds" } else { "does not hold" }
            });
            let detail = check.detail.as_deref().filter(|detail| !detail.is_empty());
            let detail = detail.map_or(String::new(), |detail| format!(" ({})", plain(detail)));
            text += &format!("- {}: **{verdict}**{detail}\n", plain(&check.says));
        }
    }
    for ratio in &comparison.ratios {
        text += &format!(
            "\n## Tokens of the reference for the same {}\n\n",
            plain(&ratio.by)
        );
        for point in &ratio.points {
            let tokens = point.n_tokens.map_or("–".to_owned(), number);
            text += &format!(
                "- {}: {tokens} tokens, the reference {} times as many\n",
                plain(&point.row),
                point.words()
            );
        }
    }
    text
}

fn failures(comparison: &Comparison) -> String {
    let failed: Vec<&RowReport> = comparison
        .all_rows()
        .filter(|row| row.is_failed())
        .collect();
    let mut text = if failed.is_empty() {
        String::new()
    } else {
        "\n## Failed\n\n".to_owned()
    };
    for row in failed {
        text += &format!(
            "- {}: {}\n",
            plain(row.title()),
            plain(row.error.as_deref().unwrap_or("no reason given"))
        );
    }
    text
}

fn cells(comparison: &Comparison, row: &RowReport) -> impl Iterator<Item = String> {
    comparison.columns.iter().map(|column| {
        let Some(measured) = row.values.get(&column.key) else {
            return "–".to_owned();
        };
        let Some(mean) = measured.mean else {
            return "–".to_owned();
        };
        let text = spread(&column.key, mean, measured.std);
        let is_teacher = comparison
            .teacher
            .as_ref()
            .is_some_and(|teacher| std::ptr::eq(teacher, row));
        let is_best = !is_teacher && Some(mean) == comparison.best(column);
        if is_best { format!("**{text}**") } else { text }
    })
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// On one line, with nothing that Markdown or HTML would take for its own.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
    {
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
            "columns": [{ "key": "loss", "better": "lower" }, { "key": "n_params",
                "title": "parameters" },
                { "key": "params_share", "title": "% of parameters" }, { "key": "peak_bytes",
                    "better": "lower" }],
            "warnings": ["columns: no row has `speed`"],
            "teacher": { "name": "teacher", "values": { "loss": { "mean": 0.25 }, "params_share": {
                "mean": 1.0 } } },
            "rows": [
                { "name": "a|b\n<i>", "values": { "loss": { "mean": 0.5, "std": 0.25 },
                    "n_params": { "mean": 1200.0 },
                    "params_share": { "mean": 0.5 }, "peak_bytes": { "mean": 3145728.0 } },
                        "warnings": ["no _text_"] },
                { "name": "c", "status": "failed", "error": "out of memory" },
            ],
            "checks": [{ "says": "a is best", "holds": true, "detail": "0.5" }, { "says": "?" }],
        }))
        .unwrap();
        let expected = "# Losses\n\nOf m, mean ± standard deviation over 2 seeds.\n\n\
            |  | loss | parameters | % of parameters | peak\\_bytes |\n| --- | ---: | ---: | ---: \
            | ---: |\n\
            | teacher | 0.2500 | – | 100 % | – |\n\
            | a\\|b &lt;i&gt; | **0.5000 ± 0.2500** | 1,200 | 50.0 % | **3.0 MiB** |\n| c | – | – \
            | – | – |\n\n\
            ## Failed\n\n- c: out of memory\n\n\
            ## Warnings\n\n- columns: no row has \\`speed\\`\n- a\\|b &lt;i&gt;: \
            no \\_text\\_\n\n## Checks\n\n- a is best: **holds** (0.5)\n- ?: **cannot be told**\n";
        assert_eq!(comparison_markdown(&comparison), expected);
    }
}
