//! Finite values; the same subject gives the same values, whatever the batch size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{IoContext, Result};
use minitron_core::progress::Silent;
use minitron_engine::data::Tokenizer;
use serde_json::{Value, json};

use super::samples::{VOCAB, config_of, some_windows};
use super::{SampleModel, Trial, UNTRIED, of_inputs, sample_config};

/// All words of the sample tokenizer.
pub(super) const TEXT: &str = "Once upon a time there was dog Mia saw big red ball . sad home day";

/// Tries an evaluator on a tiny model with a teacher, windows, a tokenizer and, where it reads one,
/// a task file.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial) -> Result<String> {
    let dir = tempfile::tempdir().at_path("a temporary folder")?;
    let mut spec = trial.spec.clone();
    if trial.lacks_its_file() {
        spec = spec.with("path", task_file(dir.path())?.to_string_lossy().as_ref());
    }
    let evaluator = match trial.registry.build::<dyn Evaluator>(&spec) {
        Ok(evaluator) => evaluator,
        Err(error) => return Ok(untried(&of_inputs(&error).ok_or(error)?)),
    };
    let config = sample_config("llama");
    let model = SampleModel::new(trial.registry, &config, 6)?;
    let teacher = SampleModel::new(trial.registry, &config, 7)?;
    let (model, teacher) = (model.load()?, teacher.load()?);
    let (windows, tokenizer) = (some_windows(7, 12, 8)?, tokenizer(dir.path(), TEXT)?);
    let subject = Subject {
        model: &model,
        teacher: Some(&teacher),
        kept_hidden: None,
        windows: Some(&windows),
        tokenizer: Some(&tokenizer),
        batch_size: 8,
        seed: 1,
        progress: &Silent,
    };
    let measured = match evaluator.evaluate(&subject) {
        Ok(measured) => measured,
        Err(error) => return Ok(untried(&of_inputs(&error).ok_or(error)?)),
    };
    trial.ensure(!measured.is_empty(), "it measures nothing")?;
    for (when, batch_size) in [
        ("asked twice", 8),
        ("with batches of 3 instead of 8", 3),
        ("with batches of 1 instead of 8", 1),
    ] {
        let again = evaluator.evaluate(&Subject {
            batch_size,
            ..subject
        })?;
        compare(trial, when, &measured, &again)?;
    }
    Ok("finite values, the same twice and whatever the batch size".into())
}

fn untried(reason: &str) -> String {
    format!("{UNTRIED} it has what it measures on: {reason}")
}

fn compare(trial: &Trial, when: &str, one: &Measurements, other: &Measurements) -> Result<()> {
    let keys: Vec<&String> = one.keys().collect();
    let others: Vec<&String> = other.keys().collect();
    trial.ensure(
        keys == others,
        format!("{when}, it measures other things: {keys:?}, {others:?}"),
    )?;
    for ((key, one), other) in one.iter().zip(other.values()) {
        trial.ensure(
            one.is_finite(),
            format!("`{key}` is {one}: expected a finite number"),
        )?;
        // Speeds are no property of the subject.
        let is_time = key.contains("per_second") || key.ends_with("_s");
        let is_close = is_time || (one - other).abs() <= 1e-5 * one.abs();
        trial.ensure(
            is_close,
            format!("{when}, `{key}` is {other} and not {one}"),
        )?;
    }
    Ok(())
}

/// A tokenizer of whole words, each a token.
pub(super) fn tokenizer(dir: &Path, words: &str) -> Result<Tokenizer> {
    let vocab: BTreeMap<&str, usize> = words
        .split(' ')
        .enumerate()
        .map(|(id, word)| (word, id + 1))
        .collect();
    let mut vocab: BTreeMap<String, usize> = vocab
        .into_iter()
        .map(|(word, id)| (word.to_owned(), id))
        .collect();
    vocab.insert("unknown".into(), 0);
    let text = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "unknown" },
    });
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, text.to_string()).at_path(&path)?;
    Tokenizer::load(dir, &config_of(&json!({ "eos_token_id": 0 }))?, VOCAB, true)
}

/// A record with the fields of every kind of task that is built in.
fn record(prompt: &str, completion: &str) -> Value {
    json!({
        "prompt": prompt, "completion": completion, "context": prompt,
        "choices": ["a red ball .", "sad", "home"], "gold": 1,
        "text": prompt, "label": completion,
    })
}

fn task_file(dir: &Path) -> Result<PathBuf> {
    let records = [
        record("Once upon a time", " there was a"),
        record("Mia saw a", " dog"),
        record("Once upon a day Mia saw a big", " dog"),
        record("Once upon a time", " there was a"),
    ];
    let path = dir.join("task.jsonl");
    std::fs::write(&path, records.map(|record| record.to_string()).join("\n")).at_path(&path)?;
    Ok(path)
}
