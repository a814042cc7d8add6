//! What the options of a job say of themselves beside type and default, as extensions of their
//! schema: `#[schemars(extend("decides" = false))]`.

use minitron_core::registry::Kind;
use serde_json::Value;

use super::recipe::{JOBS, options_schema};

/// Of an option that changes when a result is there, but not the result: `false`.
const DECIDES: &str = "decides";
/// Of an option whose files decide, not their names: `true`.
const BY_CONTENT: &str = "by_content";
/// Of an option that names plugins: their kinds.
const PLUGINS: &str = "plugins";
/// All of these.
pub(super) const MARKS: [&str; 3] = [DECIDES, BY_CONTENT, PLUGINS];

/// Names of a job's options with what a mark says of them, in the order of the options.
fn marked(job: &str, mark: &str) -> Vec<(String, Value)> {
    let schema = options_schema(job).to_value();
    let options = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    options
        .filter_map(|(option, own)| Some((option.clone(), own.get(mark)?.clone())))
        .collect()
}

/// The options of a job that decide nothing about its result.
pub(super) fn decide_nothing(job: &str) -> Vec<String> {
    marked(job, DECIDES)
        .into_iter()
        .map(|(option, _)| option)
        .collect()
}

/// The options of a job whose files are known by their content.
pub(super) fn by_content(job: &str) -> Vec<String> {
    marked(job, BY_CONTENT)
        .into_iter()
        .map(|(option, _)| option)
        .collect()
}

/// The options of all jobs that name plugins, and of which kinds.
pub(super) fn naming() -> Vec<(String, Vec<Kind>)> {
    let mut found: Vec<(String, Vec<Kind>)> = Vec::new();
    for (option, kinds) in JOBS.iter().flat_map(|job| marked(job, PLUGINS)) {
        if found.iter().all(|(other, _)| *other != option) {
            let names = kinds
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            found.push((option, names.filter_map(|name| name.parse().ok()).collect()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_of_flattened_options_too() {
        assert!(decide_nothing("distill").contains(&"checkpoint_every".to_owned()));
        assert!(decide_nothing("distill").contains(&"stream_teacher".to_owned()));
        assert!(decide_nothing("search").contains(&"max_memory".to_owned()));
        assert!(!decide_nothing("score").contains(&"max_memory".to_owned()));
        assert_eq!(
            by_content("search"),
            ["model", "scores", "teacher_cache", "data", "eval_data"]
        );
    }

    #[test]
    fn every_option_of_plugins_names_kinds_that_there_are() {
        let naming = naming();
        let names: Vec<&str> = naming.iter().map(|(option, _)| option.as_str()).collect();
        assert_eq!(
            names,
            [
                "metrics",
                "allocator",
                "axes",
                "heal",
                "losses",
                "evaluators"
            ]
        );
        assert!(naming.iter().all(|(_, kinds)| !kinds.is_empty()));
        assert_eq!(naming[4].1, [Kind::Loss, Kind::StateLoss]);
    }
}
