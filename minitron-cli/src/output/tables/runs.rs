//! What jobs came to: searches, comparisons, runs, and their verification.

use std::collections::BTreeMap;

use minitron_core::spec::split_dim;
use minitron_engine::report::{bytes, in_units, spread};
use serde_json::Value;

use super::{entries, in_blocks, listed, right_aligned, table, terminal_width, title, word};

/// One size, or from the least to the largest where layers differ.
fn sizes_of(sizes: &Value, kind: &str) -> String {
    let of_kind = entries(sizes).filter(|(name, _)| split_dim(name).0 == kind);
    let all: Vec<u64> = of_kind.filter_map(|(_, size)| size.as_u64()).collect();
    match (all.iter().min(), all.iter().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
        (Some(one), _) => one.to_string(),
        _ => String::new(),
    }
}

/// `search`: the candidates, best first.
pub fn search_table(report: &Value) -> String {
    let named = entries(&report["candidates"][0]["sizes"]).map(|(name, _)| split_dim(name).0);
    let mut kinds: Vec<&str> = named.collect();
    kinds.dedup();
    let mut header: Vec<&str> = vec![""];
    header.extend(&kinds);
    header.extend(["parameters", "loss before", "loss", "rank"]);
    let mut cells_by_row = Vec::new();
    let mut rows: Vec<(usize, &Value)> = listed(&report["candidates"]).enumerate().collect();
    rows.sort_by_key(|(_, row)| row["rank"].as_u64().unwrap_or(u64::MAX));
    for (idx, row) in rows {
        let name = row["name"].as_str().map(str::to_owned);
        let mut cells = vec![name.unwrap_or_else(|| (idx + 1).to_string())];
        cells.extend(kinds.iter().map(|kind| sizes_of(&row["sizes"], kind)));
        cells.push(word(&row["n_params"]));
        cells.push(word(&row["zero_shot"]["loss"]));
        cells.push(word(&row["loss"]));
        cells.push(word(&row["rank"]));
        cells_by_row.push(cells);
    }
    let grid = &report["grid"];
    let counts = ["n_points", "n_within", "n_legal"].map(|key| word(&grid[key]));
    let mut text = format!(
        "{} points, {} within the budget, {} legal\n",
        counts[0], counts[1], counts[2]
    );
    if let Some(winner) = report["winner"]["name"].as_str() {
        let spearman = word(&report["correlation"]["spearman"]);
        let saved = word(&report["shared_teacher"]["seconds_saved"]);
        text += &format!(
            "winner {winner}; order before and after training: Spearman {spearman}; the shared \
             teacher saved {saved} s\n"
        );
    }
    let header: Vec<String> = header.into_iter().map(str::to_owned).collect();
    text + &in_blocks(&header, &cells_by_row, terminal_width())
}

/// `compare`: a line for the original and each strategy, then what failed, what should hold and
/// what the ratios are.
pub fn comparison_table(report: &Value) -> String {
    let mut header = vec![String::new()];
    for column in listed(&report["columns"]) {
        header.push(column["title"].as_str().unwrap_or_default().to_owned());
    }
    let (mut done, mut failed) = (Vec::new(), String::new());
    for row in std::iter::once(&report["teacher"]).chain(listed(&report["rows"])) {
        if let Some(error) = row["error"].as_str() {
            failed += &format!("\nfailed: {}: {error}", row_name(row));
        }
        if row.is_object() && row["error"].is_null() {
            let mut cells = vec![row_name(row)];
            cells.extend(listed(&report["columns"]).map(|column| mean_cell(row, column)));
            done.push(cells);
        }
    }
    let mut text = in_blocks(&header, &done, terminal_width()) + &failed;
    for check in listed(&report["checks"]) {
        let holds = match check["holds"].as_bool() {
            Some(true) => "holds",
            Some(false) => "does not hold",
            None => "not known",
        };
        let (says, detail) = (word(&check["says"]), word(&check["detail"]));
        text += &format!("\n{holds}: {says} ({detail})");
    }
    for point in listed(&report["ratios"]).flat_map(|ratio| listed(&ratio["points"])) {
        let facts: Vec<String> = entries(point)
            .map(|(key, value)| format!("{key} {}", word(value)))
            .collect();
        text += &format!("\n{}", facts.join(", "));
    }
    text
}

fn row_name(row: &Value) -> String {
    match &row["title"] {
        Value::Null => word(&row["name"]),
        title => word(title),
    }
}

/// A mean over seeds, and how far they are spread where there are several.
fn mean_cell(row: &Value, column: &Value) -> String {
    let key = column["key"].as_str().unwrap_or_default();
    let over = &row["values"][key];
    match over["mean"].as_f64() {
        Some(mean) => spread(key, mean, over["std"].as_f64()),
        None => "-".to_owned(),
    }
}

/// `generate`
pub fn generated_text(report: &Value) -> String {
    word(&report["text"])
}

/// `run`: a line per evaluated model, and what was generated.
pub fn run_table(report: &Value) -> String {
    let mut timed = table(&["stage", "job", "seconds", "tokens/s", "peak memory"]);
    for stage in listed(&report["stages"]) {
        let rate = stage["result"]["tokens_per_second"].as_f64();
        timed.add_row([
            word(&stage["name"]),
            word(&stage["do"]),
            in_units("seconds", stage["seconds"].as_f64().unwrap_or(0.0)),
            rate.map_or(String::new(), |rate| in_units("per_second", rate)),
            stage["peak_bytes"].as_u64().map_or(String::new(), bytes),
        ]);
    }
    let mut parts = vec![right_aligned(timed)];
    parts.extend(evaluations(report));
    for stage in stages_of(report, "generate") {
        let (model, text) = (&stage["options"]["model"], &stage["result"]["text"]);
        parts.push(format!("{}: {}", word(model), word(text)));
    }
    parts.join("\n\n")
}

fn stages_of<'a>(report: &'a Value, job: &'a str) -> impl Iterator<Item = &'a Value> {
    listed(&report["stages"]).filter(move |stage| stage["do"] == job)
}

/// A row per evaluated model; nothing where none was.
fn evaluations(report: &Value) -> Option<String> {
    let mut columns: Vec<String> = Vec::new();
    let mut evaluated: Vec<(String, BTreeMap<String, Value>)> = Vec::new();
    for stage in stages_of(report, "eval") {
        for (key, _) in measured(&stage["result"]) {
            if !columns.contains(&key) {
                columns.push(key);
            }
        }
        let values = measured(&stage["result"]).collect();
        evaluated.push((word(&stage["options"]["model"]), values));
    }
    if evaluated.is_empty() {
        return None;
    }
    let mut header = vec!["model".to_owned()];
    header.extend(columns.iter().map(|column| title(column)));
    let mut rows = Vec::new();
    for (model, values) in evaluated {
        let mut cells = vec![model];
        for key in &columns {
            let value = values.get(key).and_then(Value::as_f64);
            cells.push(value.map_or("-".into(), |x| in_units(key, x)));
        }
        rows.push(cells);
    }
    Some(in_blocks(&header, &rows, terminal_width()))
}

/// What differs, artefacts first.
pub fn verify_table(report: &Value) -> String {
    let mut differing = table(&["differs", "stage", "what", "recorded", "found"]);
    let mut n_artefacts = 0;
    for kind in ["artefact", "input", "setting"] {
        for found in listed(&report["differences"]).filter(|found| found["kind"] == kind) {
            n_artefacts += usize::from(kind == "artefact");
            differing.add_row([
                word(&found["kind"]),
                word(&found["stage"]),
                word(&found["what"]),
                first_letters(&found["recorded"]),
                first_letters(&found["found"]),
            ]);
        }
    }
    let verdict = if report["verified"] == true {
        "verified"
    } else {
        "not verified"
    };
    let (stages, artefacts) = (word(&report["n_stages"]), word(&report["n_artefacts"]));
    let summary =
        format!("{verdict}: {stages} stages, {artefacts} artefacts, {n_artefacts} of them differ");
    if differing.is_empty() {
        summary
    } else {
        format!("{differing}\n\n{summary}")
    }
}

/// As many as tell two hashes apart.
fn first_letters(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.chars().take(24).collect(),
        None => "-".to_owned(),
    }
}

/// An evaluation's numbers, those of tasks with the task's name.
fn measured(result: &Value) -> impl Iterator<Item = (String, Value)> {
    let own = entries(result)
        .filter(|(_, value)| value.is_number())
        .map(|(key, value)| (key.clone(), value.clone()));
    let tasks = entries(&result["tasks"]).flat_map(|(name, task)| {
        entries(task)
            .filter(|(key, _)| !key.starts_with("n_"))
            .map(move |(key, value)| (format!("{name} {key}"), value.clone()))
    });
    own.chain(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_row_stands_below_the_table() {
        let error = "a reason ".repeat(50);
        let report = serde_json::json!({ "columns": [{ "key": "loss", "title": "loss" }, {
            "key": "peak_bytes", "title": "memory" }],
            "teacher": { "name": "teacher", "title": null, "values": { "loss": { "mean": 4.0 } } },
            "rows": [{ "name": "a", "values": { "loss": { "mean": 4.5, "std": 0.01 },
                "peak_bytes": { "mean": 1048576.0 } } },
                { "name": "b", "error": error }] });
        let text = comparison_table(&report);
        let (table, failed) = text.split_once("\nfailed: b: ").unwrap();
        assert_eq!(failed, error);
        assert!(
            table.lines().all(|line| line.chars().count() < 60),
            "{table}"
        );
        assert!(
            table.contains("4.5000 ± 0.0100")
                && table.contains("1.0 MiB")
                && table.contains("teacher"),
            "{table}"
        );
    }
}
