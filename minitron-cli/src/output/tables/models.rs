//! What is known of a model, of its scores, and of a student before it is made.

use std::collections::BTreeMap;

use comfy_table::CellAlignment;
use minitron_core::spec::split_dim;
use minitron_engine::report::{bytes, grouped};
use serde_json::Value;

use super::{entries, listed, right_aligned, table, word};

/// `inspect`
pub fn inspect_table(report: &Value) -> String {
    let mut table = table(&["", "", "legal pruned sizes"]);
    for (name, key) in [
        ("architecture", "architecture"),
        ("parameters", "n_params"),
        ("  without embeddings", "n_non_embedding"),
    ] {
        table.add_row([name.into(), word(&report[key]), String::new()]);
    }
    if report["n_active"].is_u64() {
        table.add_row([
            "  of one token".into(),
            word(&report["n_active"]),
            String::new(),
        ]);
    }
    // A model of experts alone has no MLP.
    for (kind, size) in entries(&report["dims"]).filter(|(_, size)| size.as_u64() != Some(0)) {
        table.add_row([kind.clone(), word(size), legal_sizes(report, kind)]);
    }
    for (kind, sizes) in entries(&report["by_layer"]) {
        table.add_row([format!("  {kind} by layer"), String::new(), in_runs(sizes)]);
    }
    let memory = &report["memory"];
    let weights = bytes(memory["weights_bytes"].as_u64().unwrap_or(0));
    let weights = format!("{weights} ({})", word(&memory["dtype"]));
    table.add_row(["weights".into(), weights, String::new()]);
    let (batch_size, seq_len) = (word(&memory["batch_size"]), word(&memory["seq_len"]));
    let shape = format!("KV cache (16 bit), {batch_size} x {seq_len} tokens");
    let kv_cache = bytes(memory["kv_cache_bytes"].as_u64().unwrap_or(0));
    table.add_row([shape, kv_cache, String::new()]);
    let training = &report["training"];
    if let (Some(total), Some(ranks)) =
        (training["total_bytes"].as_u64(), training["ranks"].as_u64())
    {
        let parts = entries(&training["bytes"]);
        let parts = parts.map(|(name, n)| format!("{name} {}", bytes(n.as_u64().unwrap_or(0))));
        let what = format!("training step, each of {ranks} ranks");
        let parts: Vec<String> = parts.collect();
        table.add_row([what, bytes(total), parts.join(", ")]);
    }
    let devices = tensor_parallel(report);
    table.add_row(["tensor parallel".into(), devices, String::new()]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string() + &clients(report)
}

/// Sizes of layers in their order, equal ones behind each other once: `28672 (3), 0, 14336 (2)`.
fn in_runs(sizes: &Value) -> String {
    let sizes: Vec<&Value> = listed(sizes).collect();
    let runs = sizes.chunk_by(|one, next| one == next);
    let words = runs.map(|run| match run {
        [one] => word(one),
        [one, ..] => format!("{} ({})", word(one), run.len()),
        [] => String::new(),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What sizes a dim can be pruned to.
fn legal_sizes(report: &Value, kind: &str) -> String {
    let legal = &report["legal_sizes"];
    let pairs = &legal["rope_pairs"];
    if let (Some(step), "head_dim") = (pairs["multiple_of"].as_u64(), kind) {
        return format!("rope_pairs: multiples of {step} up to {}", pairs["full"]);
    }
    if let (Some(head_dim), "hidden") = (report["hidden_per_head"].as_u64(), kind) {
        return format!("heads x {head_dim}");
    }
    let axis = if kind == "layers" { "depth" } else { kind };
    match legal[axis]["multiple_of"].as_u64() {
        Some(1) => "any".to_owned(),
        Some(step) => format!("multiples of {step}"),
        None => String::new(),
    }
}

/// `score`: one line per metric and kind.
pub fn scores_table(report: &Value) -> String {
    let mut kinds: BTreeMap<String, (usize, u64, f64, f64)> = BTreeMap::new();
    for score in listed(&report["scores"]) {
        let name = word(&score["name"]);
        let (metric, dim) = name.split_once('/').unwrap_or(("", &name));
        let kind = match split_dim(dim) {
            (_, None) => name.clone(),
            (kind, Some(_)) => format!("{metric}/{kind}.*"),
        };
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

/// `blocks`: one line per part of a layer; what each size costs, with its share of the full one.
pub fn blocks_table(report: &Value) -> String {
    let mut table = table(&["layer", "part", "size: cost (KL in nats, else the error)"]);
    for block in listed(&report["blocks"]) {
        let mut costs = Vec::new();
        for choice in listed(&block["choices"]) {
            let sizes = entries(&choice["sizes"]).map(|(_, size)| size.as_u64().unwrap_or(0));
            let cost = choice["kl"].as_f64().or(choice["error"].as_f64());
            let size = match sizes.max() {
                None | Some(0) => "none".to_owned(),
                Some(size) => size.to_string(),
            };
            costs.push(format!("{size}: {:.4}", cost.unwrap_or(f64::NAN)));
        }
        table.add_row([
            word(&block["layer"]),
            word(&block["part"]),
            costs.join("  "),
        ]);
    }
    let (n_tokens, out) = (word(&report["n_tokens"]), word(&report["out"]));
    let seconds = report["seconds"].as_f64().unwrap_or(0.0);
    format!("{table}\n{n_tokens} tokens, {seconds:.0} s -> {out}")
}

/// `prune`: sizes before and after.
pub fn plan_table(report: &Value) -> String {
    let mut table = table(&["", "source", "student", "kept"]);
    let source = &report["sizes_source"];
    for (name, student) in entries(&report["sizes"]) {
        // A layer's own where layers of the source are alike.
        let before = source.get(name).unwrap_or(&source[split_dim(name).0]);
        table.add_row(plan_row(name, before, student));
    }
    let (source, student) = (&report["n_params_source"], &report["n_params"]);
    table.add_row(plan_row("parameters", source, student));
    let source = &report["n_non_embedding_source"];
    let student = &report["n_non_embedding"];
    table.add_row(plan_row("  without embeddings", source, student));
    if report["n_active"].is_u64() {
        let source = &report["n_active_source"];
        table.add_row(plan_row("  of one token", source, &report["n_active"]));
    }
    let devices = format!("\ntensor parallel: {}", tensor_parallel(report));
    let notes = devices + &clients(report) + &near_ties(&report["near_ties"]);
    right_aligned(table) + &notes + &reconstruction(report) + &held_out(&report["held_out"])
}

/// One line: what held-out text says of the original, the plain cut and the student.
fn held_out(held_out: &Value) -> String {
    let Some(n_tokens) = held_out["n_tokens"].as_u64() else {
        return String::new();
    };
    let number = |value: &Value| value.as_f64().map(|number| format!("{number:.4}"));
    let mut words = Vec::new();
    if let Some(loss) = number(&held_out["loss_source"]) {
        words.push(format!("source {loss}"));
    }
    let all = [("plain", "plain cut"), ("student", "student")];
    let is_plain = held_out["plain"] == held_out["student"];
    for (key, name) in all.into_iter().skip(usize::from(is_plain)) {
        let (loss, kl) = (number(&held_out[key]["loss"]), number(&held_out[key]["kl"]));
        if let (Some(loss), Some(kl)) = (loss, kl) {
            words.push(format!("{name} {loss}, KL {kl}"));
        } else if let Some(cosine) = number(&held_out[key]["cosine"]) {
            words.push(format!("{name} {cosine}"));
        }
    }
    let what = match held_out["loss_source"] {
        Value::Null => "cosine to the source",
        _ => "loss",
    };
    let words = words.join("; ");
    format!("\nheld out, {n_tokens} tokens, {what}: {words}")
}

/// One line: what was done, and how much is left of what the median projection lacked.
fn reconstruction(report: &Value) -> String {
    let tags: Vec<String> = listed(&report["healed"]).map(word).collect();
    if tags.is_empty() {
        return String::new();
    }
    let mut left: Vec<f64> = listed(&report["fits"])
        .filter_map(|fit| Some(fit["after"].as_f64()? / fit["before"].as_f64()?))
        .filter(|share| share.is_finite())
        .collect();
    left.sort_by(f64::total_cmp);
    let of_fits = match left.get(left.len() / 2) {
        Some(median) => format!(
            ": {:.0} % is left of what the median of {} projections lacked",
            100.0 * median,
            left.len()
        ),
        None => String::new(),
    };
    let (taken, errors) = (taken(report), errors(report));
    format!(
        "\nreconstructed by {}{of_fits}{taken}{errors}",
        tags.join(", ")
    )
}

/// One line: how many units kept layers took of dropped ones, by kind.
fn taken(report: &Value) -> String {
    let mut by_kind: BTreeMap<&str, usize> = BTreeMap::new();
    for taken in listed(&report["taken"]) {
        let units = taken["units"].as_object().into_iter().flatten();
        for (kind, replaced) in units {
            *by_kind.entry(kind).or_default() += listed(&replaced["units"]).count();
        }
    }
    let kinds = by_kind.iter().map(|(kind, n)| format!("{n} {kind}"));
    match kinds.collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        kinds => format!("\ntaken from dropped layers: {}", kinds.join(", ")),
    }
}

/// By layer, the share that is lacking of what each part reads and has to write, as reconstructed,
/// and which share comes in by the part itself.
fn errors(report: &Value) -> String {
    let (mut columns, mut rows) = (Vec::new(), BTreeMap::new());
    for fit in listed(&report["fits"]) {
        let Some(layer) = fit["layer"].as_u64() else {
            continue;
        };
        let part = word(&fit["part"]);
        let shares = match fit["writes"].as_bool() {
            Some(true) => vec![
                (format!("{part} writes"), "lacking"),
                (format!("by {part}"), "error"),
            ],
            _ => vec![(format!("{part} reads"), "lacking")],
        };
        for (column, key) in shares {
            let place = place_of(&mut columns, column);
            // A second sweep's come last.
            let row: &mut BTreeMap<usize, f64> = rows.entry(layer).or_default();
            let share = fit[key].as_f64().unwrap_or(0.0);
            // Experts add up, one after the other.
            let so_far = match (key, fit["unit"].is_u64()) {
                ("error", true) => row.get(&place).copied().unwrap_or(0.0),
                _ => 0.0,
            };
            row.insert(place, so_far + share);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let header: Vec<&str> = std::iter::once("lacking, layer")
        .chain(columns.iter().map(String::as_str))
        .collect();
    let mut table = table(&header);
    for (layer, row) in rows {
        let share = |place| {
            row.get(&place)
                .map(|share| format!("{:.1} %", share * 100.0))
        };
        let cells = (0..columns.len()).map(|place| share(place).unwrap_or_default());
        table.add_row(std::iter::once(layer.to_string()).chain(cells));
    }
    format!("\n{}", right_aligned(table))
}

/// Where a column stands, at the end where it is new.
fn place_of(columns: &mut Vec<String>, column: String) -> usize {
    let place = columns.iter().position(|known| *known == column);
    place.unwrap_or_else(|| {
        columns.push(column);
        columns.len() - 1
    })
}

fn plan_row(name: &str, source: &Value, student: &Value) -> [String; 4] {
    let share = student.as_f64().unwrap_or(0.0) / source.as_f64().unwrap_or(1.0) * 100.0;
    let kept = format!("{share:.1} %");
    [name.to_owned(), word(source), word(student), kept]
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
    let mut lines = String::new();
    for limit in listed(&report["clients"]) {
        lines += &format!("\n{}: {}", word(&limit["client"]), word(&limit["message"]));
    }
    lines
}

/// One line: how many dims a few calibration windows more might have cut elsewhere.
fn near_ties(report: &Value) -> String {
    let dims: Vec<String> = listed(report).map(word).collect();
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
