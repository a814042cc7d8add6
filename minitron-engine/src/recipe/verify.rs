//! What a run was made with and what it left, so that two runs, or a run and what lies on disk now,
//! can be told apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::run_dir::{RunDir, RunRecord, StageRecord};
use super::versions::versions;
use minitron_core::digest;
use minitron_core::error::{Error, IoContext, Result};

/// Digests of what a stage left, by path within its folder: weights, scores, plans and configs as
/// they are; records with what no run repeats (times, speeds, memory) left out. What is there to go
/// on from, and events, are not among them.
pub(crate) fn artefacts(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).at_path(&folder)? {
            let path = entry.at_path(&folder)?.path();
            let name = file_name(&path);
            if name.starts_with('.') || NOT_ARTEFACTS.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let place = path.strip_prefix(dir).unwrap_or(&path);
                found.insert(place.display().to_string(), digest_of(&path)?);
            }
        }
    }
    Ok(found)
}

/// Larger files are only asked whether they are there: `run --verify` reads them whole.
const MOST_HASHED: u64 = 64 << 20;

/// Whether what a stage left is still there, and its files as they were.
pub(crate) fn is_intact(dir: &Path, artefacts: &BTreeMap<String, String>) -> bool {
    artefacts.iter().all(|(name, digest)| {
        let path = dir.join(name);
        path.is_file() && (!is_small(&path) || digest_of(&path).is_ok_and(|found| found == *digest))
    })
}

fn is_small(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.len() <= MOST_HASHED)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

const NOT_ARTEFACTS: [&str; 3] = ["checkpoint", "logs", "candidates"];

/// Records of a run; all else is compared byte for byte.
const RECORDS: [&str; 3] = ["metrics.jsonl", "result.json", "search.json"];

/// Keys of records, or ends of keys, whose values no run repeats.
const NEVER_REPEATED: [&str; 6] = [
    "seconds",
    "elapsed_s",
    "seconds_saved",
    "per_second",
    "peak_bytes",
    "predicted_bytes",
];

fn digest_of(path: &Path) -> Result<String> {
    if !RECORDS.contains(&file_name(path).as_str()) {
        return digest::of_file(path);
    }
    let text = fs::read_to_string(path).at_path(path)?;
    let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let what_repeats: Vec<Value> = values.map_while(Result::ok).map(without_times).collect();
    Ok(digest::of_text(&json!(what_repeats).to_string()))
}

fn without_times(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut left = Map::new();
            for (key, value) in object {
                if !NEVER_REPEATED.iter().any(|end| key.ends_with(end)) {
                    left.insert(key, without_times(value));
                }
            }
            Value::Object(left)
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_times).collect()),
        other => other,
    }
}

/// Compares a run's record with what lies on disk now, or, where `other` is given, with another
/// run's record.
///
/// Differences come by kind: `artefact` (what the run left), `input` (what it read), `setting`
/// (recipe, seed, versions, processor, threads). `verified` says that no artefact differs, is
/// missing or was never made; the others say why one may.
///
/// # Errors
/// `Recipe` where a folder holds no run, or one that recorded no digests.
pub fn verify(dir: &Path, other: Option<&Path>) -> Result<Value> {
    let recorded = record_of(dir)?;
    let differences = match other {
        Some(other) => between(&recorded, &record_of(other)?),
        None => with_disk(dir, &recorded)?,
    };
    let stages = recorded.stages.iter();
    let n_artefacts: usize = stages.map(|stage| stage.artefacts.len()).sum();
    let is_verified = differences.iter().all(|found| found["kind"] != "artefact");
    Ok(json!({
        "dir": dir,
        "other": other,
        "verified": is_verified,
        "n_stages": recorded.stages.len(),
        "n_artefacts": n_artefacts,
        "differences": differences,
    }))
}

fn record_of(dir: &Path) -> Result<RunRecord> {
    let record = RunDir::read(dir)?;
    let mut stages = record.stages.iter();
    match stages.find(|stage| stage.result.is_some() && stage.artefacts.is_empty()) {
        Some(stage) => Err(Error::Recipe(format!(
            "{}: stage `{}` was run by a version that recorded no digests; run it again with \
             --force",
            dir.display(),
            stage.name
        ))),
        None => Ok(record),
    }
}

fn difference(
    kind: &str,
    stage: &str,
    what: &str,
    recorded: Option<&str>,
    found: Option<&str>,
) -> Value {
    json!({ "kind": kind, "stage": stage, "what": what, "recorded": recorded, "found": found })
}

/// What a stage as a whole is called among what differs.
const STAGE: &str = "(the stage)";

/// What two maps do not agree in.
fn differing(
    kind: &str,
    stage: &str,
    recorded: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> Vec<Value> {
    let names: BTreeSet<&String> = recorded.keys().chain(found.keys()).collect();
    let mut differences = Vec::new();
    for name in names {
        let recorded = recorded.get(name).map(String::as_str);
        let found = found.get(name).map(String::as_str);
        if recorded != found {
            differences.push(difference(kind, stage, name, recorded, found));
        }
    }
    differences
}

fn settings(record: &RunRecord) -> BTreeMap<String, String> {
    let own = [
        ("seed", record.seed.to_string()),
        ("device", record.device.clone()),
        ("dtype", record.dtype.clone()),
    ];
    own.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(record.versions.clone())
        .collect()
}

fn with_disk(dir: &Path, recorded: &RunRecord) -> Result<Vec<Value>> {
    let mut differences = Vec::new();
    for stage in &recorded.stages {
        if stage.result.is_none() {
            let (name, unfinished) = (&stage.name, Some("unfinished"));
            differences.push(difference("artefact", name, STAGE, unfinished, None));
            continue;
        }
        let folder = dir.join(&stage.name);
        let found = if folder.is_dir() {
            artefacts(&folder)?
        } else {
            BTreeMap::new()
        };
        differences.extend(differing("artefact", &stage.name, &stage.artefacts, &found));
        for (path, recorded) in &stage.input_files {
            let found = input_digest(Path::new(path), recorded);
            let (recorded, found) = (Some(recorded.as_str()), found.as_deref());
            if found != recorded {
                differences.push(difference("input", &stage.name, path, recorded, found));
            }
        }
    }
    let here = versions();
    differences.extend(differing("setting", "", &recorded.versions, &here));
    Ok(differences)
}

/// A large data file is remembered by samples of it.
fn input_digest(path: &Path, recorded: &str) -> Option<String> {
    let whole = digest::of_file(path).ok()?;
    if whole == recorded {
        Some(whole)
    } else {
        digest::of_data_file(path).ok()
    }
}

fn between(recorded: &RunRecord, other: &RunRecord) -> Vec<Value> {
    let mut differences = Vec::new();
    let stages = recorded.stages.iter().chain(&other.stages);
    let names: BTreeSet<&str> = stages.map(|stage| stage.name.as_str()).collect();
    for name in names {
        let (one, two) = (stage_of(recorded, name), stage_of(other, name));
        let (Some(one), Some(two)) = (one, two) else {
            let (recorded, found) = (one.map(|_| "there"), two.map(|_| "there"));
            differences.push(difference("artefact", name, STAGE, recorded, found));
            continue;
        };
        differences.extend(differing("artefact", name, &one.artefacts, &two.artefacts));
        let (read, read_there) = (by_file_name(one), by_file_name(two));
        differences.extend(differing("input", name, &read, &read_there));
        let (options, others) = (options_of(one), options_of(two));
        differences.extend(differing("setting", name, &options, &others));
    }
    let (settings, others) = (settings(recorded), settings(other));
    differences.extend(differing("setting", "", &settings, &others));
    differences
}

fn stage_of<'r>(record: &'r RunRecord, name: &str) -> Option<&'r StageRecord> {
    record.stages.iter().find(|stage| stage.name == name)
}

fn options_of(stage: &StageRecord) -> BTreeMap<String, String> {
    BTreeMap::from([("options".to_owned(), stage.options.to_string())])
}

/// Two runs may have read the same files from other places.
fn by_file_name(stage: &StageRecord) -> BTreeMap<String, String> {
    let mut digests_by_name: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, digest) in &stage.input_files {
        let digests = digests_by_name.entry(file_name(Path::new(path)));
        digests.or_default().push(digest);
    }
    let mut by_name = BTreeMap::new();
    for (name, mut digests) in digests_by_name {
        digests.sort_unstable();
        by_name.insert(name, digests.join(" "));
    }
    by_name
}
