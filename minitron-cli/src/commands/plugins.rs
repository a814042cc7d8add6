use minitron_core::error::{Error, Result};
use minitron_core::registry::{Descriptor, Kind, PluginSpec, Registry};
use serde_json::{Value, json};

use crate::args::{Common, Plugins};
use crate::output;

pub fn run(common: &Common, command: &Plugins) -> Result<()> {
    // Naming something of the crate is what keeps its registrations linked.
    minitron_plugins::link();
    let registry = Registry::linked()?;
    match command {
        Plugins::List => {
            let rows: Vec<Value> = registry.descriptors().iter().map(|descriptor| row(descriptor)).collect();
            output::show(common.json, &json!({ "plugins": rows }), output::plugins_table)
        }
        Plugins::Show { name } => {
            let (kind, tag) = name.split_once('/').ok_or_else(|| {
                Error::Recipe(format!("expected KIND/NAME, for example importance/activation, got `{name}`"))
            })?;
            let known = Kind::ALL.iter().map(|kind| kind.name());
            let kind =
                *Kind::ALL.iter().find(|k| k.name() == kind).ok_or_else(|| Error::unknown("kind", kind, known))?;
            output::show(common.json, &details(registry.find(kind, tag)?), output::plugin_table)
        }
    }
}

fn row(descriptor: &Descriptor) -> Value {
    json!({
        "kind": descriptor.kind.name(),
        "name": descriptor.tag,
        "summary": descriptor.summary,
        "origin": descriptor.origin,
    })
}

fn details(descriptor: &Descriptor) -> Value {
    let mut details = row(descriptor);
    let schema = (descriptor.schema)().to_value();
    let example = (descriptor.example)();
    let spec = PluginSpec { tag: descriptor.tag.to_owned(), params: example.as_object().cloned().unwrap_or_default() };
    details["source"] = json!(descriptor.source);
    details["description"] = schema.get("description").cloned().unwrap_or_default();
    details["defaults"] = example;
    details["example"] = json!(spec.to_string());
    details["schema"] = schema;
    details
}
