use std::path::Path;

use minitron_core::error::{Error, Result};
use minitron_core::registry::{Descriptor, PluginSpec, Registry};
use serde_json::{Map, Value, json};

use super::new_plugin::new;
use crate::args::{Common, Plugins};
use crate::output;
use crate::settings::registry;

pub fn run(common: &Common, command: &Plugins) -> Result<()> {
    let registry = match command {
        Plugins::List | Plugins::Show { .. } => registry(common, None)?,
        Plugins::New { kind, dir } => return new(common, *kind, dir),
        Plugins::Check { library } => return check(common, library),
    };
    match command {
        Plugins::New { .. } | Plugins::Check { .. } => Ok(()),
        Plugins::List => {
            let rows: Vec<Value> = registry
                .descriptors()
                .iter()
                .map(|descriptor| row(descriptor))
                .collect();
            output::show(
                common.json,
                &json!({ "plugins": rows }),
                output::plugins_table,
            )
        }
        Plugins::Show { name } => {
            let (kind, tag) = name.split_once('/').ok_or_else(|| {
                Error::Recipe(format!(
                    "expected KIND/NAME, for example importance/activation, got `{name}`"
                ))
            })?;
            output::show(
                common.json,
                &details(registry.find(kind.parse()?, tag)?),
                output::plugin_table,
            )
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
    let spec = PluginSpec {
        tag: descriptor.tag.to_owned(),
        params: example.as_object().cloned().unwrap_or_default(),
    };
    details["source"] = json!(descriptor.source);
    details["description"] = schema.get("description").cloned().unwrap_or_default();
    details["defaults"] = example;
    details["example"] = json!(spec.to_string());
    details["schema"] = schema;
    details
}

/// Handshake and contract of one library.
fn check(common: &Common, library: &Path) -> Result<()> {
    let handshake = minitron_plugins::handshake(library)?;
    minitron_plugins::link();
    let registry =
        Registry::linked()?.with_library(String::new(), minitron_plugins::open(library)?)?;
    let rows = minitron_plugins::check_opened(&registry)?;
    let fields: Map<String, Value> = handshake
        .fields()
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.into()))
        .collect();
    output::show(
        common.json,
        &json!({ "library": library, "handshake": fields, "plugins": rows }),
        output::facts_table,
    )
}
