//! What jobs came to: searches, comparisons, runs, and their verification.

use std::collections::BTreeMap;

use minitron_engine::report::{bytes, in_units, spread};
use serde_json::Value;

use super::{entries, in_blocks, right_aligned, table, terminal_width, title, word};

/// `search`: the candidates, best first.
pub fn search_table(report: &Value) -> String {
    let kinds: Vec<&String> = entries(&report["candidates"][0]["sizes"])
        .map(|(kind, _)| kind)
        .collect();
    let mut header: Vec<&str> = vec![""];
    header.extend(kinds.iter().map(|kind| kind.as_str()));
    header.extend(["parameters", "loss before", "loss", "rank"]);
    let mut cells_by_row = Vec::new();
    let mut rows: Vec<(usize, &Value)> = report["candidates"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .collect();
    rows.sort_by_key(|(_, row)| row["rank"].as_u64().unwrap_or(u64::MAX));
    for (idx, row) in rows {
        let name = row["name"]
            .as_str()
            .map_or_else(|| (idx + 1).to_string(), str::to_owned);
        let mut cells = vec![name];
        cells.extend(kinds.iter().map(|kind| word(&row["sizes"][kind.as_str()])));
        cells.extend(
            [
                &row["n_params"],
                &row["zero_shot"]["loss"],
                &row["loss"],
                &row["rank"],
            ]
            .map(word),
        );
        cells_by_row.push(cells);
    }
    let grid = &report["grid"];
    let counts = ["n_points", "n_within", "n_legal"].map(|key| word(&grid[key]));
    let mut text = format!(
        "{} points, {} within the budget, {} legal\n",
        counts[0], counts[1], counts[2]
    );
    if let Some(winner) = report["winner"]["name"].as_str() {
        let (spearman, saved) = (
            &report["correlation"]["spearman"],
            &report["shared_teacher"]["seconds_saved"],
        );
        text += &format!(
            "winner {winner}; order before and after training: Spearman {}; the shared teacher \
             saved {} s\n",
            word(spearman),
            word(saved)
        );
    }
    let header: Vec<String> = header.into_iter().map(str::to_owned).collect();
    text + &in_blocks(&header, &cells_by_row, terminal_width())
}

/// `compare`: a line for the original and each strategy, then what failed, what should hold and
/// what the ratios are.
pub fn comparison_table(report: &Value) -> String {
    let rows = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let columns = rows("columns");
    let titles = columns
        .iter()
        .map(|column| column["title"].as_str().unwrap_or_default().to_owned());
    let header: Vec<String> = std::iter::once(String::new()).chain(titles).collect();
    let lines: Vec<Value> = std::iter::once(report["teacher"].clone())
        .chain(rows("rows"))
        .collect();
    let name = |row: &Value| {
        word(if row["title"].is_null() {
            &row["name"]
        } else {
            &row["title"]
        })
    };
    let cell = |row: &Value, column: &Value| {
        let key = column["key"].as_str().unwrap_or_default();
        let over = &row["values"][key];
        over["mean"].as_f64().map_or("-".to_owned(), |mean| {
            spread(key, mean, over["std"].as_f64())
        })
    };
    let cells = |row: &Value| {
        std::iter::once(name(row))
            .chain(columns.iter().map(|column| cell(row, column)))
            .collect::<Vec<_>>()
    };
    let done = lines
        .iter()
        .filter(|row| row.is_object() && row["error"].is_null());
    let mut text = in_blocks(
        &header,
        &done.map(cells).collect::<Vec<_>>(),
        terminal_width(),
    );
    for row in &lines {
        if let Some(error) = row["error"].as_str() {
            text += &format!("\nfailed: {}: {error}", name(row));
        }
    }
    for check in rows("checks") {
        let holds = check["holds"].as_bool().map_or("not known", |holds| {
            if holds { "holds" } else { "does not hold" }
        });
        text += &format!(
            "\n{holds}: {} ({})",
            word(&check["says"]),
            word(&check["detail"])
        );
    }
    for point in rows("ratios")
        .iter()
        .flat_map(|ratio| ratio["points"].as_array().cloned().unwrap_or_default())
    {
        let facts: Vec<String> = entries(&point)
            .map(|(key, value)| format!("{key} {}", word(value)))
            .collect();
        text += &format!("\n{}", facts.join(", "));
    }
    text
}

/// `generate`
pub fn generated_text(report: &Value) -> String {
    word(&report["text"])
}

/// `run`: a line per evaluated model, and what was generated.
pub fn run_table(report: &Value) -> String {
    let stages = || report["stages"].as_array().into_iter().flatten();
    let of_job = |job: &'static str| stages().filter(move |stage| stage["do"] == job);
    let mut columns: Vec<String> = Vec::new();
    for stage in of_job("eval") {
        for (key, _) in measured(&stage["result"]) {
            if !columns.contains(&key) {
                columns.push(key);
            }
        }
    }
    let mut header = vec!["model".to_owned()];
    header.extend(columns.iter().map(|column| title(column)));
    let mut evaluated = Vec::new();
    for stage in of_job("eval") {
        let values: BTreeMap<String, Value> = measured(&stage["result"]).collect();
        let cell = |key: &String| {
            values
                .get(key)
                .and_then(Value::as_f64)
                .map_or("-".into(), |x| in_units(key, x))
        };
        evaluated.push(
            std::iter::once(word(&stage["options"]["model"]))
                .chain(columns.iter().map(cell))
                .collect(),
        );
    }
    let mut timed = table(&["stage", "job", "seconds", "tokens/s", "peak memory"]);
    for stage in stages() {
        let rate = stage["result"]["tokens_per_second"]
            .as_f64()
            .map_or(String::new(), |rate| in_units("per_second", rate));
        timed.add_row([
            word(&stage["name"]),
            word(&stage["do"]),
            in_units("seconds", stage["seconds"].as_f64().unwrap_or(0.0)),
            rate,
            stage["peak_bytes"].as_u64().map_or(String::new(), bytes),
        ]);
    }
    let mut parts = vec![right_aligned(timed)];
    if !evaluated.is_empty() {
        parts.push(in_blocks(&header, &evaluated, terminal_width()));
    }
    for stage in of_job("generate") {
        parts.push(format!(
            "{}: {}",
            word(&stage["options"]["model"]),
            word(&stage["result"]["text"])
        ));
    }
    parts.join("\n\n")
}

/// What differs, artefacts first.
pub fn verify_table(report: &Value) -> String {
    let all = || report["differences"].as_array().into_iter().flatten();
    let short = |value: &Value| {
        value
            .as_str()
            .map_or("-".to_owned(), |text| text.chars().take(24).collect())
    };
    let mut differing = table(&["differs", "stage", "what", "recorded", "found"]);
    for kind in ["artefact", "input", "setting"] {
        for found in all().filter(|found| found["kind"] == kind) {
            let cells = [
                word(&found["kind"]),
                word(&found["stage"]),
                word(&found["what"]),
            ];
            differing.add_row(
                cells
                    .into_iter()
                    .chain([short(&found["recorded"]), short(&found["found"])]),
            );
        }
    }
    let n_artefacts = all().filter(|found| found["kind"] == "artefact").count();
    let verdict = if report["verified"] == true {
        "verified"
    } else {
        "not verified"
    };
    let counts = format!(
        "{} stages, {} artefacts",
        word(&report["n_stages"]),
        word(&report["n_artefacts"])
    );
    let summary = format!("{verdict}: {counts}, {n_artefacts} of them differ");
    if differing.is_empty() {
        summary
    } else {
        format!("{differing}\n\n{summary}")
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
