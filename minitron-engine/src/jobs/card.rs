//! The model card of a student: what it was made from, how, and under which licence. It names no
//! place on this machine and no time, so the same job writes the same bytes.

use std::path::Path;

use serde_json::Value;

use super::identity;
use minitron_core::checkpoint::modules;
use minitron_core::error::Result;
use minitron_core::files::read_text;
use minitron_core::output::write_atomic;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{ModelSpec, Sizes, split_dim};

/// The card's file.
const FILE: &str = "README.md";
/// Among the tags of every card written here.
const MARK: &str = "minitron";
/// Headings that a later job goes on after.
const HISTORY: &str = "## How it was made";
/// What of a source's front matter holds for its students.
const CARRIED: [&str; 5] = [
    "license",
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
];

/// A fact of a card's table.
pub(crate) type Fact = (String, String);

/// What a student's card says.
pub(crate) struct Card {
    /// Of the model that the job started from; none where it started from random weights.
    source: Option<(String, SourceCard)>,
    library: &'static str,
    task: &'static str,
    job: &'static str,
    facts: Vec<Fact>,
}

impl Card {
    /// Of a job on a model that people call `name`, in this folder; without a name, on fresh
    /// weights.
    pub fn new(
        job: &'static str,
        name: Option<&str>,
        dir: &Path,
        spec: &ModelSpec,
        facts: Vec<Fact>,
    ) -> Result<Self> {
        let is_encoder = modules(dir)?.is_some();
        let task = match &spec.options.head {
            _ if is_encoder => "sentence-similarity",
            None => "feature-extraction",
            Some(_) if spec.options.causal => "text-generation",
            Some(_) => "fill-mask",
        };
        let library = if is_encoder {
            "sentence-transformers"
        } else {
            "transformers"
        };
        Ok(Card {
            source: name.map(|name| (name.to_owned(), SourceCard::read(dir))),
            library,
            task,
            job,
            facts,
        })
    }

    /// The same of another model that the job changed.
    pub fn of_another(&self, name: &str, dir: &Path) -> Self {
        let source = Some((name.to_owned(), SourceCard::read(dir)));
        Card {
            source,
            facts: self.facts.clone(),
            ..*self
        }
    }

    /// Writes it into a student's folder; `before` are the sizes of what was pruned, where they are
    /// known.
    pub fn write(
        &self,
        dir: &Path,
        student: &ModelSpec,
        before: Option<&Before>,
        measured: &[Fact],
    ) -> Result<()> {
        let mut text = self.front_matter();
        text += &match self.base() {
            Some(base) => format!("# Made from {base} with minitron\n\n"),
            None => "# Trained from random weights with minitron\n\n".to_owned(),
        };
        text += &sizes(student, before);
        text += &limits(student);
        text += &format!("\n{HISTORY}\n");
        if let Some((_, source)) = &self.source {
            text += &source.history;
        }
        text += &format!("\n### {}\n\n| | |\n|---|---|\n", self.job);
        for (key, value) in self.facts.iter().chain(measured) {
            text += &format!("| {key} | {} |\n", cell(value));
        }
        write_atomic(&dir.join(FILE), text)
    }

    /// What the first of all jobs started from.
    fn base(&self) -> Option<&str> {
        let (name, source) = self.source.as_ref()?;
        if source.is_ours {
            source.base.as_deref()
        } else {
            Some(name)
        }
    }

    fn front_matter(&self) -> String {
        let source = self.source.as_ref().map(|(_, source)| source);
        let mut text = "---\n".to_owned();
        if let Some(base) = self.base() {
            text += &format!("base_model: {}\n", Value::from(base));
        }
        text += &format!("library_name: {}\n", self.library);
        let mut has_task = false;
        for key in CARRIED {
            if let Some(block) = source.and_then(|source| source.block(key)) {
                text += block;
                has_task |= key == "pipeline_tag";
            }
        }
        if !has_task {
            text += &format!("pipeline_tag: {}\n", self.task);
        }
        let mut tags = source.map(SourceCard::tags).unwrap_or_default();
        if !tags.iter().any(|tag| tag == MARK) {
            tags.push(MARK.to_owned());
        }
        text += "tags:\n";
        for tag in tags {
            text += &format!("- {}\n", Value::from(tag));
        }
        text + "---\n\n"
    }
}

/// Sizes of what was pruned.
pub(crate) struct Before {
    pub sizes: Sizes,
    pub n_params: u64,
}

impl Before {
    pub fn of(spec: &ModelSpec) -> Self {
        Before {
            sizes: spec.sizes(),
            n_params: spec.n_params(),
        }
    }

    /// As `plan.json` of a pruned folder has them.
    pub fn of_plan(dir: &Path) -> Option<Self> {
        let saved: Value = serde_json::from_str(&read_text(&dir.join("plan.json")).ok()?).ok()?;
        let sizes = serde_json::from_value(saved.get("sizes_source")?.clone()).ok()?;
        Some(Before {
            sizes,
            n_params: saved.get("n_params_source")?.as_u64()?,
        })
    }
}

fn sizes(student: &ModelSpec, before: Option<&Before>) -> String {
    let mut rows = vec![(
        "parameters".to_owned(),
        before.map(|before| before.n_params),
        student.n_params(),
    )];
    for (kind, size) in student.sizes() {
        // Of a layer's own dim that of its kind, where layers were alike.
        let sizes = before.map(|before| &before.sizes);
        let size_of = |name: &str| sizes.and_then(|sizes| sizes.get(name));
        let earlier = size_of(&kind).or_else(|| size_of(split_dim(&kind).0));
        let earlier = earlier.map(|&size| size as u64);
        rows.push((kind, earlier, size as u64));
    }
    let has_both = before.is_some();
    let mut text = match has_both {
        true => "| | before pruning | now |\n|---|---|---|\n".to_owned(),
        false => "| | |\n|---|---|\n".to_owned(),
    };
    for (name, earlier, now) in rows {
        text += &match (has_both, earlier) {
            (true, Some(earlier)) => format!("| {name} | {earlier} | {now} |\n"),
            (true, None) => format!("| {name} | | {now} |\n"),
            (false, _) => format!("| {name} | {now} |\n"),
        };
    }
    text
}

/// What programs that load the folder make of the student; nothing where all take it.
fn limits(student: &ModelSpec) -> String {
    let found = student.client_limits(&Sizes::new());
    let lines: Vec<String> = found
        .iter()
        .map(|limit| format!("- {}: {}\n", limit.client, limit.message))
        .collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!(
            "\nPrograms that do not load it as it is:\n\n{}",
            lines.concat()
        ),
    }
}

/// What is read of the card that lies beside a source.
#[derive(Default)]
struct SourceCard {
    /// Top-level keys of its front matter, each with its lines.
    blocks: Vec<(String, String)>,
    /// Whether an earlier job wrote it.
    is_ours: bool,
    base: Option<String>,
    history: String,
}

impl SourceCard {
    /// A card that is no text, or has no front matter, says nothing.
    fn read(dir: &Path) -> Self {
        let text = read_text(&dir.join(FILE)).unwrap_or_default();
        let mut card = SourceCard::default();
        let mut lines = text.trim_start_matches('\u{feff}').lines();
        if lines.next().map(str::trim_end) != Some("---") {
            return card;
        }
        for line in lines.by_ref().take_while(|line| line.trim_end() != "---") {
            let key = line
                .split_once(':')
                .map(|(key, _)| key)
                .filter(|key| is_key(key));
            match (key, card.blocks.last_mut()) {
                (Some(key), _) => card.blocks.push((key.to_owned(), format!("{line}\n"))),
                (None, Some((_, block))) => *block += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        card.is_ours = card.tags().iter().any(|tag| tag == MARK);
        if card.is_ours {
            card.base = card
                .block("base_model")
                .and_then(|block| Some(unquoted(block.split_once(':')?.1)));
            let rest: Vec<&str> = lines.skip_while(|line| *line != HISTORY).skip(1).collect();
            card.history = rest.iter().map(|line| format!("{line}\n")).collect();
        }
        card
    }

    fn block(&self, key: &str) -> Option<&str> {
        self.blocks
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, block)| block.as_str())
    }

    /// As a list in brackets or with a dash each.
    fn tags(&self) -> Vec<String> {
        let block = self
            .block("tags")
            .and_then(|block| block.split_once(':'))
            .map_or("", |(_, rest)| rest);
        let inline = block
            .trim()
            .strip_prefix('[')
            .and_then(|list| list.strip_suffix(']'));
        let words: Vec<&str> = match inline {
            Some(list) => list.split(',').collect(),
            None => block
                .lines()
                .filter_map(|line| line.trim().strip_prefix("- "))
                .collect(),
        };
        words
            .into_iter()
            .map(unquoted)
            .filter(|tag| !tag.is_empty())
            .collect()
    }
}

fn is_key(word: &str) -> bool {
    !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        && !word.starts_with('-')
}

/// A scalar of YAML as our own cards and most others write it.
fn unquoted(word: &str) -> String {
    let word = word.trim();
    serde_json::from_str(word).unwrap_or_else(|_| word.trim_matches(['\'', '"']).to_owned())
}

/// How others call a model: by its hub id, or by the name of its folder.
pub(crate) fn name_of(model: &str, dir: &Path) -> String {
    let id = model.split('@').next().unwrap_or(model);
    if !Path::new(model).exists() && id.split('/').count() == 2 {
        return id.to_owned();
    }
    identity::name_of(dir)
}

/// The options of a job that are worth a line, in this order and separated by spaces; what is empty
/// or left at nothing is left out.
pub(crate) fn facts(options: &Value, keys: &str) -> Vec<Fact> {
    let mut facts = Vec::new();
    for key in keys.split(' ') {
        let mut words = options.get(key).map(in_words).unwrap_or_default();
        let is_free_text = ["grid", "size", "filter"].contains(&key);
        if !is_free_text {
            words = without_folders(&words);
        }
        if !words.is_empty() {
            facts.push((key.replace('_', " "), words));
        }
    }
    facts
}

/// An option in a line; nothing where it is left at nothing.
fn in_words(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(false) => String::new(),
        Value::Array(list) => list.iter().map(written).collect::<Vec<_>>().join(", "),
        Value::Object(map) if !map.contains_key("type") => {
            let pairs = map.iter();
            let pairs = pairs.map(|(key, value)| format!("{key}={}", written(value)));
            pairs.collect::<Vec<_>>().join(", ")
        }
        one => written(one),
    }
}

/// A plugin as it is typed, all else as JSON has it.
fn written(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        Value::Object(_) => match serde_json::from_value::<PluginSpec>(value.clone()) {
            Ok(spec) => spec.to_string(),
            Err(_) => value.to_string(),
        },
        other => other.to_string(),
    }
}

/// Each path by its last part: where it lay on this machine concerns nobody.
fn without_folders(words: &str) -> String {
    let pieces = words.split_inclusive(['=', ',', '*', '#', ':', ' ', '"']);
    pieces
        .map(|piece| piece.rsplit('/').next().unwrap_or(piece))
        .collect()
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_their_folders_and_nothing_else() {
        for (long, short) in [
            ("/a/b/c.txt#0..5, 0.5*../d.jsonl", "c.txt#0..5, 0.5*d.jsonl"),
            (
                "multiple_choice:path=/a/b.jsonl,k=3",
                "multiple_choice:path=b.jsonl,k=3",
            ),
            ("4B+-5%", "4B+-5%"),
        ] {
            assert_eq!(without_folders(long), short);
        }
    }

    #[test]
    fn a_sources_front_matter_is_read_leniently() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            SourceCard::read(dir.path())
        };
        let card = read(
            "\u{feff}---\r\nlicense: other\r\nlanguage:\r\n- en\r\n- de\r\ntags: [a, \"b \
             c\"]\r\n---\r\n# T\r\n",
        );
        assert_eq!(card.block("license"), Some("license: other\n"));
        assert_eq!(card.block("language"), Some("language:\n- en\n- de\n"));
        assert_eq!(card.tags(), ["a", "b c"]);
        assert!(!card.is_ours);
        assert!(
            read("# no front matter\n---\nlicense: mit\n---\n")
                .blocks
                .is_empty()
        );
        assert!(read("---\n- odd\n---\n").blocks.is_empty());
    }
}
