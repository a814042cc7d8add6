//! What the options of a job say of themselves beside type and default, as extensions of their
//! schema: `#[schemars(extend("decides" = false))]`.

use minitron_core::registry::Kind;
use schemars::Schema;
use serde_json::Value;

/// Of an option that changes when a result is there, but not the result: `false`.
const DECIDES: &str = "decides";
/// Of an option whose files decide, not their names: `true`.
const BY_CONTENT: &str = "by_content";
/// Of an option that names plugins: their kinds.
const PLUGINS: &str = "plugins";
/// All of these.
pub(crate) const MARKS: [&str; 3] = [DECIDES, BY_CONTENT, PLUGINS];

/// Names of the options that a mark stands at, with what it says, in their order.
fn marked(options: &Schema, mark: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let properties = options.get("properties").and_then(Value::as_object);
    for (option, own) in properties.into_iter().flatten() {
        if let Some(said) = own.get(mark) {
            found.push((option.clone(), said.clone()));
        }
    }
    found
}

fn names(marked: Vec<(String, Value)>) -> Vec<String> {
    marked.into_iter().map(|(option, _)| option).collect()
}

/// The options of a job that decide nothing about its result.
pub(crate) fn decide_nothing(options: &Schema) -> Vec<String> {
    names(marked(options, DECIDES))
}

/// The options of a job whose files are known by their content.
pub(crate) fn by_content(options: &Schema) -> Vec<String> {
    names(marked(options, BY_CONTENT))
}

/// The options of a job that name plugins, and of which kinds.
pub(crate) fn of_plugins(options: &Schema) -> Vec<(String, Vec<Kind>)> {
    let mut found = Vec::new();
    for (option, kinds) in marked(options, PLUGINS) {
        let kinds = kinds.as_array().into_iter().flatten();
        let kinds = kinds.filter_map(|kind| kind.as_str()?.parse().ok());
        found.push((option, kinds.collect()));
    }
    found
}

#[cfg(test)]
mod tests {
    use minitron_core::registry::inlined;

    use super::*;
    use crate::jobs::{DistillOptions, ScoreOptions, TrainOptions};

    #[test]
    fn marks_are_read_of_flattened_options_too() {
        let nothing = decide_nothing(&inlined::<DistillOptions>());
        assert!(nothing.contains(&"checkpoint_every".to_owned()));
        assert!(nothing.contains(&"stream_teacher".to_owned()));
        let nothing = decide_nothing(&inlined::<ScoreOptions>());
        assert!(!nothing.contains(&"max_memory".to_owned()));
        let by_content = by_content(&inlined::<TrainOptions>());
        assert_eq!(by_content, ["data", "eval_data"]);
    }

    #[test]
    fn options_of_plugins_name_kinds_that_there_are() {
        let of_plugins = of_plugins(&inlined::<TrainOptions>());
        let kinds = vec![Kind::Loss, Kind::StateLoss];
        assert_eq!(of_plugins, [("losses".to_owned(), kinds)]);
    }
}
