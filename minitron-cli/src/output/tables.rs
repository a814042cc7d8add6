//! Tables from the same objects that `--json` prints.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use minitron_core::report::{bytes, grouped, in_units, spread};
use serde_json::Value;

pub(in crate::output) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    // Words wrap where a table would be wider than the terminal; whoever reads a pipe has whole lines.
    if table.width().is_some() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    for line in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
        TableComponent::LeftBorderIntersections,
        TableComponent::RightBorderIntersections,
    ] {
        table.remove_style(line);
    }
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

/// Numbers under each other: every column but the first to the right.
pub(in crate::output) fn right_aligned(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Columns of text where there is no terminal to ask.
const WIDTH: usize = 100;
/// Most columns of text for the name of a row that is cut into blocks.
const NAME_WIDTH: usize = 36;

fn terminal_width() -> usize {
    Table::new().width().map_or(WIDTH, usize::from)
}

/// Rows with a name and numbers: where they are wider than the terminal, in blocks of columns, each with the names.
fn in_blocks(header: &[String], rows: &[Vec<String>], width: usize) -> String {
    let all: Vec<&[String]> = std::iter::once(header).chain(rows.iter().map(Vec::as_slice)).collect();
    // A space on each side, and one between two columns.
    let width_of = |idx: usize| {
        let cells = all.iter().filter_map(|row| row.get(idx)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0) + 3
    };
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut taken = 0;
    for idx in 1..header.len() {
        match blocks.last_mut().filter(|_| taken + width_of(idx) <= width) {
            Some(block) => block.push(idx),
            None => {
                taken = width_of(0).min(NAME_WIDTH);
                blocks.push(vec![idx]);
            }
        }
        taken += width_of(idx);
    }
    let drawn = blocks.iter().map(|block| {
        let cells = |row: &[String]| -> Vec<String> {
            let name = row.first().map(|name| shortened(name, NAME_WIDTH - 2)).unwrap_or_default();
            std::iter::once(name).chain(block.iter().filter_map(|&idx| row.get(idx).cloned())).collect()
        };
        let titles = cells(header);
        let mut table = table(&titles.iter().map(String::as_str).collect::<Vec<_>>());
        table.set_content_arrangement(ContentArrangement::Disabled);
        rows.iter().for_each(|row| _ = table.add_row(cells(row)));
        right_aligned(table)
    });
    drawn.collect::<Vec<_>>().join("\n\n")
}

fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() {
        n if n <= most => text.to_owned(),
        _ => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// A measurement's name for people.
pub(in crate::output) fn title(key: &str) -> String {
    match key {
        "n_params" => "parameters".into(),
        "n_non_embedding" => "without embeddings".into(),
        other => other.strip_prefix("n_").unwrap_or(other).replace('_', " "),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(n) => match (n.as_u64(), n.as_f64()) {
            (Some(n), _) => grouped(n),
            (None, Some(x)) if x.fract() == 0.0 && (0.0..9e15).contains(&x) => grouped(x as u64),
            (None, Some(x)) if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e6) => format!("{x:.3e}"),
            (None, Some(x)) => format!("{x:.4}"),
            _ => n.to_string(),
        },
        other => other.to_string(),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Plain facts, nested ones with their path.
pub fn facts_table(report: &Value) -> String {
    fn add(table: &mut Table, prefix: &str, value: &Value) {
        for (key, value) in entries(value) {
            match value {
                // They stand on stderr.
                Value::Array(_) if key == "warnings" && prefix.is_empty() => {}
                Value::Object(_) => add(table, &format!("{prefix}{key}."), value),
                _ => _ = table.add_row([format!("{prefix}{key}"), word(value)]),
            }
        }
    }
    let mut table = table(&[]);
    add(&mut table, "", report);
    right_aligned(table)
}

/// `inspect`
pub fn inspect_table(report: &Value) -> String {
    let mut table = table(&["", "", "legal pruned sizes"]);
    table.add_row(["architecture".into(), word(&report["architecture"]), String::new()]);
    table.add_row(["parameters".into(), word(&report["n_params"]), String::new()]);
    table.add_row(["  without embeddings".into(), word(&report["n_non_embedding"]), String::new()]);
    for (kind, size) in entries(&report["dims"]) {
        let legal = &report["legal_sizes"][if kind == "layers" { "depth" } else { kind.as_str() }];
        let mut rule = match legal["multiple_of"].as_u64() {
            Some(1) => "any".to_owned(),
            Some(step) => format!("multiples of {step}"),
            None => String::new(),
        };
        if let (Some(head_dim), "hidden") = (report["hidden_per_head"].as_u64(), kind.as_str()) {
            rule = format!("heads x {head_dim}");
        }
        table.add_row([kind.clone(), word(size), rule]);
    }
    let memory = &report["memory"];
    let weights = bytes(memory["weights_bytes"].as_u64().unwrap_or(0));
    table.add_row(["weights".into(), format!("{weights} ({})", word(&memory["dtype"])), String::new()]);
    let shape = format!("KV cache (16 bit), {} x {} tokens", word(&memory["batch_size"]), word(&memory["seq_len"]));
    table.add_row([shape, bytes(memory["kv_cache_bytes"].as_u64().unwrap_or(0)), String::new()]);
    table.add_row(["tensor parallel".into(), tensor_parallel(report), String::new()]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string() + &clients(report)
}

/// `search`: the candidates, best first.
pub fn search_table(report: &Value) -> String {
    let kinds: Vec<&String> = entries(&report["candidates"][0]["sizes"]).map(|(kind, _)| kind).collect();
    let mut header: Vec<&str> = vec![""];
    header.extend(kinds.iter().map(|kind| kind.as_str()));
    header.extend(["parameters", "loss before", "loss", "rank"]);
    let mut cells_by_row = Vec::new();
    let mut rows: Vec<(usize, &Value)> = report["candidates"].as_array().into_iter().flatten().enumerate().collect();
    rows.sort_by_key(|(_, row)| row["rank"].as_u64().unwrap_or(u64::MAX));
    for (idx, row) in rows {
        let name = row["name"].as_str().map_or_else(|| (idx + 1).to_string(), str::to_owned);
        let mut cells = vec![name];
        cells.extend(kinds.iter().map(|kind| word(&row["sizes"][kind.as_str()])));
        cells.extend([&row["n_params"], &row["zero_shot"]["loss"], &row["loss"], &row["rank"]].map(word));
        cells_by_row.push(cells);
    }
    let grid = &report["grid"];
    let counts = ["n_points", "n_within", "n_legal"].map(|key| word(&grid[key]));
    let mut text = format!("{} points, {} within the budget, {} legal\n", counts[0], counts[1], counts[2]);
    if let Some(winner) = report["winner"]["name"].as_str() {
        let (spearman, saved) = (&report["correlation"]["spearman"], &report["shared_teacher"]["seconds_saved"]);
        text += &format!(
            "winner {winner}; order before and after training: Spearman {}; the shared teacher saved {} s\n",
            word(spearman),
            word(saved)
        );
    }
    let header: Vec<String> = header.into_iter().map(str::to_owned).collect();
    text + &in_blocks(&header, &cells_by_row, terminal_width())
}

/// `compare`: a line for the original and each strategy, then what failed, what should hold and what the ratios are.
pub fn comparison_table(report: &Value) -> String {
    let rows = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let columns = rows("columns");
    let titles = columns.iter().map(|column| column["title"].as_str().unwrap_or_default().to_owned());
    let header: Vec<String> = std::iter::once(String::new()).chain(titles).collect();
    let lines: Vec<Value> = std::iter::once(report["teacher"].clone()).chain(rows("rows")).collect();
    let name = |row: &Value| word(if row["title"].is_null() { &row["name"] } else { &row["title"] });
    let cell = |row: &Value, column: &Value| {
        let key = column["key"].as_str().unwrap_or_default();
        let over = &row["values"][key];
        over["mean"].as_f64().map_or("-".to_owned(), |mean| spread(key, mean, over["std"].as_f64()))
    };
    let cells = |row: &Value| {
        std::iter::once(name(row)).chain(columns.iter().map(|column| cell(row, column))).collect::<Vec<_>>()
    };
    let done = lines.iter().filter(|row| row.is_object() && row["error"].is_null());
    let mut text = in_blocks(&header, &done.map(cells).collect::<Vec<_>>(), terminal_width());
    for row in &lines {
        if let Some(error) = row["error"].as_str() {
            text += &format!("\nfailed: {}: {error}", name(row));
        }
    }
    for check in rows("checks") {
        let holds = check["holds"].as_bool().map_or("not known", |holds| if holds { "holds" } else { "does not hold" });
        text += &format!("\n{holds}: {} ({})", word(&check["says"]), word(&check["detail"]));
    }
    for point in rows("ratios").iter().flat_map(|ratio| ratio["points"].as_array().cloned().unwrap_or_default()) {
        let facts: Vec<String> = entries(&point).map(|(key, value)| format!("{key} {}", word(value))).collect();
        text += &format!("\n{}", facts.join(", "));
    }
    text
}

/// `plugins list`
pub fn plugins_table(report: &Value) -> String {
    let mut table = table(&["kind", "name", "summary"]);
    for plugin in report["plugins"].as_array().into_iter().flatten() {
        table.add_row([word(&plugin["kind"]), word(&plugin["name"]), word(&plugin["summary"])]);
    }
    table.to_string()
}

/// `plugins show`
pub fn plugin_table(plugin: &Value) -> String {
    let mut text = format!("{}/{}: {}\n\n", word(&plugin["kind"]), word(&plugin["name"]), word(&plugin["summary"]));
    text += &format!("{}\n\n", word(&plugin["description"]));
    let mut table = table(&["parameter", "type", "default", "meaning"]);
    for (name, schema) in entries(&plugin["schema"]["properties"]) {
        let default = plugin["defaults"][name].to_string();
        table.add_row([name.clone(), parameter_type(schema), default, word(&schema["description"])]);
    }
    if !table.is_empty() {
        text += &format!("{table}\n\n");
    }
    text + &format!(
        "example  {}\nsource   {}\norigin   {}",
        word(&plugin["example"]),
        word(&plugin["source"]),
        word(&plugin["origin"])
    )
}

/// A parameter's type, choices or range, from its schema.
fn parameter_type(schema: &Value) -> String {
    let choice = |of: &Value| of["const"].as_str().map(str::to_owned);
    let listed = |key: &str| schema[key].as_array().into_iter().flatten();
    let choices: Vec<String> = listed("oneOf")
        .filter_map(choice)
        .chain(listed("enum").filter_map(|of| of.as_str().map(str::to_owned)))
        .collect();
    if !choices.is_empty() {
        return choices.join(" | ");
    }
    let types = match &schema["type"] {
        Value::Array(list) => list.iter().map(word).collect::<Vec<_>>().join(" | "),
        one => word(one),
    };
    let (min, max) = (&schema["minimum"], &schema["maximum"]);
    let end = |value: &Value| if value.is_null() { String::new() } else { value.to_string() };
    match min.is_null() && max.is_null() {
        true => types,
        false => format!("{types}, {}..{}", end(min), end(max)),
    }
}

/// `score`: one line per metric and kind.
pub fn scores_table(report: &Value) -> String {
    let mut kinds: BTreeMap<String, (usize, u64, f64, f64)> = BTreeMap::new();
    for score in report["scores"].as_array().into_iter().flatten() {
        let name = word(&score["name"]);
        let kind = name.rsplit_once('.').map_or(name.clone(), |(kind, _)| format!("{kind}.*"));
        let entry = kinds.entry(kind).or_insert((0, 0, f64::INFINITY, f64::NEG_INFINITY));
        entry.0 += 1;
        entry.1 += score["n_units"].as_u64().unwrap_or(0);
        entry.2 = entry.2.min(score["min"].as_f64().unwrap_or(f64::NAN));
        entry.3 = entry.3.max(score["max"].as_f64().unwrap_or(f64::NAN));
    }
    let mut table = table(&["scores", "groups", "units", "min", "max"]);
    for (kind, (n_groups, n_units, min, max)) in kinds {
        table.add_row([kind, n_groups.to_string(), grouped(n_units), format!("{min:.4}"), format!("{max:.4}")]);
    }
    let speed = format!(
        "{} windows, {} tokens, {:.0} tokens/s -> {}",
        word(&report["n_samples"]),
        word(&report["n_tokens"]),
        report["tokens_per_second"].as_f64().unwrap_or(0.0),
        word(&report["out"])
    );
    format!("{}\n{speed}", right_aligned(table))
}

/// `prune`: sizes before and after.
pub fn plan_table(report: &Value) -> String {
    let mut table = table(&["", "source", "student", "kept"]);
    let mut row = |name: &str, from: &Value, to: &Value| {
        let share = to.as_f64().unwrap_or(0.0) / from.as_f64().unwrap_or(1.0) * 100.0;
        table.add_row([name.to_owned(), word(from), word(to), format!("{share:.1} %")]);
    };
    for (kind, to) in entries(&report["sizes"]) {
        row(kind, &report["sizes_source"][kind], to);
    }
    row("parameters", &report["n_params_source"], &report["n_params"]);
    row("  without embeddings", &report["n_non_embedding_source"], &report["n_non_embedding"]);
    right_aligned(table) + &format!("\ntensor parallel: {}", tensor_parallel(report)) + &near_ties(&report["near_ties"])
}

/// Numbers of devices that the model can be split over.
fn tensor_parallel(report: &Value) -> String {
    let sizes: Vec<String> = report["tensor_parallel"].as_array().into_iter().flatten().map(word).collect();
    sizes.join(", ")
}

/// A line for each program that refuses the model as it is.
fn clients(report: &Value) -> String {
    let line = |limit: &Value| format!("\n{}: {}", word(&limit["client"]), word(&limit["message"]));
    report["clients"].as_array().into_iter().flatten().map(line).collect()
}

/// One line: how many dims a few calibration windows more might have cut elsewhere.
fn near_ties(report: &Value) -> String {
    let dims: Vec<String> = report.as_array().into_iter().flatten().map(word).collect();
    let (listed, more) = dims.split_at(dims.len().min(6));
    match more.len() {
        _ if dims.is_empty() => String::new(),
        0 => format!("\nnear ties (margin below 1 %): {}", listed.join(", ")),
        n => format!("\nnear ties (margin below 1 %): {} and {n} more", listed.join(", ")),
    }
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
        let cell = |key: &String| values.get(key).and_then(Value::as_f64).map_or("-".into(), |x| in_units(key, x));
        evaluated.push(std::iter::once(word(&stage["options"]["model"])).chain(columns.iter().map(cell)).collect());
    }
    let mut timed = table(&["stage", "job", "seconds", "tokens/s", "peak memory"]);
    for stage in stages() {
        let rate =
            stage["result"]["tokens_per_second"].as_f64().map_or(String::new(), |rate| in_units("per_second", rate));
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
        parts.push(format!("{}: {}", word(&stage["options"]["model"]), word(&stage["result"]["text"])));
    }
    parts.join("\n\n")
}

/// What differs, artefacts first.
pub fn verify_table(report: &Value) -> String {
    let all = || report["differences"].as_array().into_iter().flatten();
    let short = |value: &Value| value.as_str().map_or("-".to_owned(), |text| text.chars().take(24).collect());
    let mut differing = table(&["differs", "stage", "what", "recorded", "found"]);
    for kind in ["artefact", "input", "setting"] {
        for found in all().filter(|found| found["kind"] == kind) {
            let cells = [word(&found["kind"]), word(&found["stage"]), word(&found["what"])];
            differing.add_row(cells.into_iter().chain([short(&found["recorded"]), short(&found["found"])]));
        }
    }
    let n_artefacts = all().filter(|found| found["kind"] == "artefact").count();
    let verdict = if report["verified"] == true { "verified" } else { "not verified" };
    let counts = format!("{} stages, {} artefacts", word(&report["n_stages"]), word(&report["n_artefacts"]));
    let summary = format!("{verdict}: {counts}, {n_artefacts} of them differ");
    if differing.is_empty() { summary } else { format!("{differing}\n\n{summary}") }
}

/// An evaluation's numbers, those of tasks with the task's name.
fn measured(result: &Value) -> impl Iterator<Item = (String, Value)> {
    let own = entries(result).filter(|(_, value)| value.is_number()).map(|(key, value)| (key.clone(), value.clone()));
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
    fn rows_that_are_too_wide_are_cut_into_blocks_with_their_names() {
        let header = ["", "first", "second", "third"].map(str::to_owned);
        let long = "a strategy whose title goes on and on, farther than any";
        let rows = [vec!["short".to_owned(), "1".into(), "2".into(), "3.0000".into()], vec![long.to_owned()]];
        let text = in_blocks(&header, &rows, 54);
        assert!(text.lines().all(|line| line.chars().count() <= 54), "{text}");
        assert_eq!(text.matches("short").count(), 2, "{text}");
        assert_eq!(text.matches("a strategy whose title goes on an…").count(), 2, "{text}");
        assert!(text.find("third").unwrap() > text.find("second").unwrap() && text.contains("3.0000"), "{text}");
    }

    #[test]
    fn a_failed_row_stands_below_the_table() {
        let error = "a reason ".repeat(50);
        let report = serde_json::json!({ "columns": [{ "key": "loss", "title": "loss" }, { "key": "peak_bytes", "title": "memory" }],
            "teacher": { "name": "teacher", "title": null, "values": { "loss": { "mean": 4.0 } } },
            "rows": [{ "name": "a", "values": { "loss": { "mean": 4.5, "std": 0.01 }, "peak_bytes": { "mean": 1048576.0 } } },
                { "name": "b", "error": error }] });
        let text = comparison_table(&report);
        let (table, failed) = text.split_once("\nfailed: b: ").unwrap();
        assert_eq!(failed, error);
        assert!(table.lines().all(|line| line.chars().count() < 60), "{table}");
        assert!(table.contains("4.5000 ± 0.0100") && table.contains("1.0 MiB") && table.contains("teacher"), "{table}");
    }
}
