//! What is known of a model, of its scores, and of a student before it is made.

use std::collections::BTreeMap;

use comfy_table::CellAlignment;
use minitron_engine::report::{bytes, grouped};
use serde_json::Value;

use super::{entries, right_aligned, table, word};

/// `inspect`
pub fn inspect_table(report: &Value) -> String {
    let mut table = table(&["", "", "legal pruned sizes"]);
    table.add_row([
        "architecture".into(),
        word(&report["architecture"]),
        String::new(),
    ]);
    table.add_row([
        "parameters".into(),
        word(&report["n_params"]),
        String::new(),
    ]);
    table.add_row([
        "  without embeddings".into(),
        word(&report["n_non_embedding"]),
        String::new(),
    ]);
    for (kind, size) in entries(&report["dims"]) {
        let legal = &report["legal_sizes"][if kind == "layers" {
            "depth"
        } else {
            kind.as_str()
        }];
        let mut rule = match legal["multiple_of"].as_u64() {
            Some(1) => "any".to_owned(),
            Some(step) => format!("multiples of {step}"),
            None => String::new(),
        };
        if let (Some(head_dim), "hidden") = (report["hidden_per_head"].as_u64(), kind.as_str()) {
            rule = format!("heads x {head_dim}");
        }
        let pairs = &report["legal_sizes"]["rope_pairs"];
        if let (Some(step), "head_dim") = (pairs["multiple_of"].as_u64(), kind.as_str()) {
            rule = format!("rope_pairs: multiples of {step} up to {}", pairs["full"]);
        }
        table.add_row([kind.clone(), word(size), rule]);
    }
    let memory = &report["memory"];
    let weights = bytes(memory["weights_bytes"].as_u64().unwrap_or(0));
    table.add_row([
        "weights".into(),
        format!("{weights} ({})", word(&memory["dtype"])),
        String::new(),
    ]);
    let shape = format!(
        "KV cache (16 bit), {} x {} tokens",
        word(&memory["batch_size"]),
        word(&memory["seq_len"])
    );
    table.add_row([
        shape,
        bytes(memory["kv_cache_bytes"].as_u64().unwrap_or(0)),
        String::new(),
    ]);
    table.add_row([
        "tensor parallel".into(),
        tensor_parallel(report),
        String::new(),
    ]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string() + &clients(report)
}

/// `score`: one line per metric and kind.
pub fn scores_table(report: &Value) -> String {
    let mut kinds: BTreeMap<String, (usize, u64, f64, f64)> = BTreeMap::new();
    for score in report["scores"].as_array().into_iter().flatten() {
        let name = word(&score["name"]);
        let kind = name
            .rsplit_once('.')
            .map_or(name.clone(), |(kind, _)| format!("{kind}.*"));
        let entry = kinds
            .entry(kind)
            .or_insert((0, 0, f64::INFINITY, f64::NEG_INFINITY));
        entry.0 += 1;
        entry.1 += score["n_units"].as_u64().unwrap_or(0);
        entry.2 = entry.2.min(score["min"].as_f64().unwrap_or(f64::NAN));
        entry.3 = entry.3.max(score["max"].as_f64().unwrap_or(f64::NAN));
    }
    let mut table = table(&["scores", "groups", "units", "min", "max"]);
    for (kind, (n_groups, n_units, min, max)) in kinds {
        table.add_row([
            kind,
            n_groups.to_string(),
            grouped(n_units),
            format!("{min:.4}"),
            format!("{max:.4}"),
        ]);
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
        table.add_row([
            name.to_owned(),
            word(from),
            word(to),
            format!("{share:.1} %"),
        ]);
    };
    for (kind, to) in entries(&report["sizes"]) {
        row(kind, &report["sizes_source"][kind], to);
    }
    row(
        "parameters",
        &report["n_params_source"],
        &report["n_params"],
    );
    row(
        "  without embeddings",
        &report["n_non_embedding_source"],
        &report["n_non_embedding"],
    );
    let devices = format!("\ntensor parallel: {}", tensor_parallel(report));
    right_aligned(table) + &devices + &clients(report) + &near_ties(&report["near_ties"])
}

/// Numbers of devices that the model can be split over.
fn tensor_parallel(report: &Value) -> String {
    let sizes: Vec<String> = report["tensor_parallel"]
        .as_array()
        .into_iter()
        .flatten()
        .map(word)
        .collect();
    sizes.join(", ")
}

/// A line for each program that refuses the model as it is.
fn clients(report: &Value) -> String {
    let line = |limit: &Value| format!("\n{}: {}", word(&limit["client"]), word(&limit["message"]));
    report["clients"]
        .as_array()
        .into_iter()
        .flatten()
        .map(line)
        .collect()
}

/// One line: how many dims a few calibration windows more might have cut elsewhere.
fn near_ties(report: &Value) -> String {
    let dims: Vec<String> = report.as_array().into_iter().flatten().map(word).collect();
    let (listed, more) = dims.split_at(dims.len().min(6));
    match more.len() {
        _ if dims.is_empty() => String::new(),
        0 => format!("\nnear ties (margin below 1 %): {}", listed.join(", ")),
        n => format!(
            "\nnear ties (margin below 1 %): {} and {n} more",
            listed.join(", ")
        ),
    }
}
