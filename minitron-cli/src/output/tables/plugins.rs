//! Plugins and their parameters.

use serde_json::Value;

use super::{entries, table, word};

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
    let end = |value: &Value| {
        if value.is_null() {
            String::new()
        } else {
            value.to_string()
        }
    };
    match min.is_null() && max.is_null() {
        true => types,
        false => format!("{types}, {}..{}", end(min), end(max)),
    }
}
