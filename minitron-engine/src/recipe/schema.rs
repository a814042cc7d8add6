//! What a recipe may hold, as JSON Schema, and whether one holds it, before anything runs.

use serde_json::{Map, Value, json};

use super::{JOBS, Recipe, StageOptions, default_options, options_schema};
use crate::jobs::marks::{MARKS, of_plugins};
use minitron_core::error::{Error, Result};
use minitron_core::registry::{Descriptor, Kind, PluginSpec, Registry};

/// What the engine takes out of a plugin's parameters for itself.
fn engine_keys(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Importance => &["as"],
        Kind::Loss | Kind::StateLoss => &["as", "weight", "alpha"],
        _ => &[],
    }
}

fn engine_schema(key: &str) -> Value {
    let number = json!({ "type": "number", "exclusiveMinimum": 0 });
    let (mut schema, description) = match key {
        "as" => (
            json!({ "type": "string" }),
            "Its name in results, where one plugin is named twice",
        ),
        "weight" => (number, "Factor of this loss in the sum"),
        _ => (
            json!({ "anyOf": [number, { "type": "string", "const": "dynamic" }] }),
            "Factor of a loss on states; `dynamic` makes it count as much as those on logits",
        ),
    };
    schema["description"] = description.into();
    schema
}

/// The options of all jobs that name plugins, and of which kinds.
fn naming() -> Vec<(String, Vec<Kind>)> {
    let mut found: Vec<(String, Vec<Kind>)> = Vec::new();
    for (option, kinds) in JOBS.iter().flat_map(|job| of_plugins(&options_schema(job))) {
        if found.iter().all(|(other, _)| *other != option) {
            found.push((option, kinds));
        }
    }
    found
}

/// Builds every plugin that a recipe names, without running it; returns how many stages and plugins
/// there are.
///
/// # Errors
/// `Recipe` naming the stage: a kind of dim with two sizes; a plugin's unknown tag, stray
/// parameter, value out of range.
pub fn check_recipe(registry: &Registry, recipe: &Recipe) -> Result<Value> {
    let (naming, mut n_plugins) = (naming(), 0_usize);
    for (idx, stage) in recipe.stages.iter().enumerate() {
        let sizes = match &stage.options {
            StageOptions::Prune(options) => options.sizes().map(drop),
            StageOptions::Search(options) => options.lists().map(drop),
            _ => Ok(()),
        };
        sizes.map_err(|e| e.at(format!("stages[{idx}] ({})", stage.name)))?;
        let options = serde_json::to_value(&stage.options).unwrap_or_default();
        for (key, kinds) in &naming {
            for spec in specs(options.get(key)) {
                let checked = check_plugin(registry, kinds, spec);
                checked.map_err(|e| e.at(format!("stages[{idx}] ({}): {key}", stage.name)))?;
                n_plugins += 1;
            }
        }
    }
    Ok(json!({ "recipe": recipe.path, "stages": recipe.stages.len(), "plugins": n_plugins }))
}

fn specs(value: Option<&Value>) -> Vec<PluginSpec> {
    let one_or_more = match value {
        Some(Value::Array(list)) => list.clone(),
        Some(Value::Null) | None => Vec::new(),
        Some(one) => vec![one.clone()],
    };
    one_or_more
        .into_iter()
        .filter_map(|spec| serde_json::from_value(spec).ok())
        .collect()
}

fn of_kinds<'a>(
    registry: &'a Registry,
    kinds: &'a [Kind],
) -> impl Iterator<Item = &'static Descriptor> + 'a {
    let all = registry.descriptors().iter().copied();
    all.filter(|descriptor| kinds.contains(&descriptor.kind))
}

fn check_plugin(registry: &Registry, kinds: &[Kind], mut spec: PluginSpec) -> Result<()> {
    let Some(descriptor) = of_kinds(registry, kinds).find(|d| d.tag == spec.tag) else {
        let what = format!("{} plugin", kinds.first().map_or("", |kind| kind.name()));
        let known = of_kinds(registry, kinds).map(|d| d.tag);
        return Err(Error::unknown(&what, &spec.tag, known));
    };
    for key in engine_keys(descriptor.kind) {
        let _ = spec.take(key);
    }
    let value = serde_json::to_value(&spec).unwrap_or_default();
    let built = descriptor.rewritten(value).map(drop);
    built.map_err(|e| Error::Recipe(format!("{} `{}`: {e}", descriptor.kind, spec.tag)))
}

/// The schema of recipes with the plugins that are registered, for editors that complete and check
/// TOML by one.
pub fn recipe_schema(registry: &Registry) -> Value {
    let stages: Vec<Value> = JOBS.iter().map(|job| stage(job)).collect();
    let mut definitions = Map::new();
    for (key, kinds) in naming() {
        let plugins: Vec<Value> = of_kinds(registry, &kinds).map(named).collect();
        definitions.insert(key, json!({ "oneOf": plugins }));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "minitron recipe",
        "type": "object",
        "additionalProperties": false,
        "required": ["stages"],
        "properties": {
            "seed": {
                "type": "integer",
                "minimum": 0,
                "description": "Seed of everything that is drawn"
            },
            "plugins": {
                "type": "object",
                "description": "Libraries of plugins, by a name of your own",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["path"],
                    "properties": {
                        "path": {
                            "type": "string",
                            "description": "The file, from the recipe's folder"
                        },
                        "sha256": {
                            "type": "string",
                            "description": "The only content that is accepted"
                        }
                    }
                }
            },
            "stages": { "type": "array", "minItems": 1, "items": { "oneOf": stages } }
        },
        "$defs": definitions,
    })
}

fn stage(job: &str) -> Value {
    let mut properties = Map::new();
    let name = json!({
        "type": "string",
        "pattern": "^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        "description": "Its folder's name, and how later stages refer to it"
    });
    let job_name = json!({ "type": "string", "const": job, "description": "The job" });
    properties.insert("name".into(), name);
    properties.insert("do".into(), job_name);
    let schema = options_schema(job).to_value();
    for (key, default) in default_options(job) {
        let own = schema.pointer(&format!("/properties/{key}"));
        let own = own.cloned().unwrap_or_default();
        properties.insert(key.clone(), option(&key, own, default));
    }
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["name", "do"],
        "properties": properties
    })
}

/// An option's own schema; one that names plugins refers to theirs, and one without a default has
/// none.
fn option(key: &str, mut own: Value, default: Value) -> Value {
    let names_plugins = own.get("plugins").is_some();
    if let Some(own) = own.as_object_mut() {
        own.retain(|key, _| !MARKS.contains(&key.as_str()));
    }
    if names_plugins {
        let plugin = json!({ "$ref": format!("#/$defs/{key}") });
        let description = own.get("description").cloned().unwrap_or_default();
        return match key {
            "allocator" => json!({ "$ref": plugin["$ref"], "description": description }),
            _ => json!({ "type": "array", "items": plugin, "description": description }),
        };
    }
    without_null(&mut own);
    if let Some(object) = own.as_object_mut() {
        object.shift_remove("default");
        if !default.is_null() {
            object.insert("default".into(), default);
        }
    }
    own
}

/// TOML has no null: what may be absent is left out.
fn without_null(schema: &mut Value) {
    for key in ["type", "anyOf", "enum"] {
        let Some(Value::Array(choices)) = schema.get_mut(key) else {
            continue;
        };
        choices.retain(|choice| !stands_for_null(choice));
        if let (1, Some(only)) = (choices.len(), choices.first().cloned()) {
            match (key, only) {
                ("anyOf", Value::Object(only)) => {
                    let Some(object) = schema.as_object_mut() else {
                        return;
                    };
                    object.shift_remove(key);
                    // What is said of the option goes before what is said of its type.
                    for (name, value) in only {
                        object.entry(name).or_insert(value);
                    }
                }
                ("type", only) => schema[key] = only,
                _ => {}
            }
        }
    }
}

/// Null as a value, as a type's name, or as a schema.
fn stands_for_null(choice: &Value) -> bool {
    choice.is_null() || choice == "null" || choice.get("type").is_some_and(|of| of == "null")
}

/// A plugin as a recipe names it: its own schema, its tag, and what the engine takes.
fn named(plugin: &Descriptor) -> Value {
    let mut schema = (plugin.schema)().to_value();
    let mut properties = json!({ "type": { "const": plugin.tag, "description": plugin.summary } });
    if let (Some(all), Some(own)) = (
        properties.as_object_mut(),
        schema.get("properties").and_then(Value::as_object),
    ) {
        all.extend(own.clone());
        for key in engine_keys(plugin.kind) {
            all.insert((*key).to_owned(), engine_schema(key));
        }
    }
    let Some(object) = schema.as_object_mut() else {
        return json!({ "properties": properties });
    };
    object.shift_remove("$schema");
    object.insert("properties".into(), properties);
    object.insert("required".into(), json!(["type"]));
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_plugins_are_found_over_all_jobs_once() {
        let naming = naming();
        let names: Vec<&str> = naming.iter().map(|(option, _)| option.as_str()).collect();
        let expected = [
            "metrics",
            "axes",
            "reconstruct",
            "allocator",
            "losses",
            "evaluators",
        ];
        assert_eq!(names, expected);
        assert!(naming.iter().all(|(_, kinds)| !kinds.is_empty()));
    }
}
