//! Plugins and their parameters.

use serde_json::Value;

use super::{entries, listed, table, word};

/// `plugins list`
pub fn plugins_table(report: &Value) -> String {
    let mut table = table(&["kind", "name", "summary"]);
    for plugin in report["plugins"].as_array().into_iter().flatten() {
        table.add_row([
            word(&plugin["kind"]),
            word(&plugin["name"]),
            word(&plugin["summary"]),
        ]);
    }
    table.to_string()
}

/// `plugins show`
pub fn plugin_table(plugin: &Value) -> String {
    let mut text = format!(
        "{}/{}: {}\n\n",
        word(&plugin["kind"]),
        word(&plugin["name"]),
        word(&plugin["summary"])
    );
    text += &format!("{}\n\n", word(&plugin["description"]));
    let mut table = table(&["parameter", "type", "default", "meaning"]);
    for (name, schema) in entries(&plugin["schema"]["properties"]) {
        let default = plugin["defaults"][name].to_string();
        table.add_row([
            name.clone(),
            parameter_type(schema),
            default,
            word(&schema["description"]),
        ]);
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
    let consts = listed(&schema["oneOf"]).map(|one| &one["const"]);
    let choices: Vec<&str> = consts
        .chain(listed(&schema["enum"]))
        .filter_map(Value::as_str)
        .collect();
    if !choices.is_empty() {
        return choices.join(" | ");
    }
    let types = match &schema["type"] {
        Value::Array(list) => list.iter().map(word).collect::<Vec<_>>().join(" | "),
        one => word(one),
    };
    let (min, max) = (&schema["minimum"], &schema["maximum"]);
    match min.is_null() && max.is_null() {
        true => types,
        false => format!("{types}, {}..{}", end(min), end(max)),
    }
}

/// An end of a range, which may be open.
fn end(value: &Value) -> String {
    match value.is_null() {
        true => String::new(),
        false => value.to_string(),
    }
}
