//! The jobs of a row, each with the model that the ones before it made.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::recipe::{Stage, StageOptions};
use minitron_core::digest;
use minitron_core::error::{Error, Result};

/// A job of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    /// Named by its content, so that equal jobs are one.
    pub stage: Stage,
    pub seed: u64,
    /// The word in the chain.
    pub word: String,
    /// Whether something was trained before.
    pub is_trained: bool,
}

/// Whether a key names a job of the chain (`prune`), or one of its places there (`prune.2`).
pub(super) fn is_of_chain(key: &str, chain: &[String]) -> bool {
    match key.split_once('.') {
        None => n_times(key, chain) > 0,
        Some((job, n)) => {
            let n = n.parse::<usize>();
            n.is_ok_and(|n| (1..=n_times(job, chain)).contains(&n))
        }
    }
}

pub(super) fn n_times<'a>(job: &str, words: impl IntoIterator<Item = &'a String>) -> usize {
    words.into_iter().filter(|word| *word == job).count()
}

/// A job's folder: equal jobs have one.
pub(super) fn content_name(word: &str, options: &StageOptions, seed: u64) -> String {
    let content = serde_json::json!([options, seed]).to_string();
    let digest = digest::of_text(&content);
    format!("{word}-{}", digest.get(..10).unwrap_or_default())
}

/// What a chain has reached.
pub(super) struct ChainState<'a> {
    /// Options of every row's jobs, by job.
    all: &'a BTreeMap<String, Map<String, Value>>,
    original: &'a str,
    /// What draws nothing runs with this one.
    first_seed: u64,
    model: String,
    scores: Option<String>,
    blocks: Option<String>,
    is_trained: bool,
}

impl<'a> ChainState<'a> {
    /// Before the first job.
    pub fn new(
        all: &'a BTreeMap<String, Map<String, Value>>,
        original: &'a str,
        first_seed: u64,
    ) -> Self {
        ChainState {
            all,
            original,
            first_seed,
            model: original.to_owned(),
            scores: None,
            blocks: None,
            is_trained: false,
        }
    }

    /// The next job, by the options of a row's own.
    ///
    /// # Errors
    /// `Recipe` for an unknown job or option.
    pub fn link(
        &mut self,
        own: &BTreeMap<String, Map<String, Value>>,
        (word, nth): (&str, usize),
        seed: u64,
    ) -> Result<Link> {
        let mut options = self.all.get(word).cloned().unwrap_or_default();
        for key in [word.to_owned(), format!("{word}.{nth}")] {
            options.extend(own.get(&key).cloned().unwrap_or_default());
        }
        let is_training = ["distill", "train", "scratch"].contains(&word);
        self.set_models(word, &mut options);
        let job = if word == "scratch" { "train" } else { word };
        if options.contains_key("stop_after") {
            return Err(Error::Recipe(
                "stop_after: a comparison runs its jobs to their end; leave it out".into(),
            ));
        }
        let parsed = StageOptions::parse(job, options)?;
        let seed = if is_training || word == "search" {
            seed
        } else {
            self.first_seed
        };
        let name = content_name(word, &parsed, seed);
        match word {
            "score" => self.scores = Some(name.clone()),
            "blocks" => self.blocks = Some(name.clone()),
            "search" => self.model = format!("{name}/winner"),
            "prune" | "distill" | "train" | "scratch" => self.model = name.clone(),
            _ => {}
        }
        let is_trained = self.is_trained;
        self.is_trained |= is_training || word == "search";
        Ok(Link {
            stage: Stage {
                name,
                options: parsed,
            },
            seed,
            word: word.to_owned(),
            is_trained,
        })
    }

    /// What a job works on, where the options do not name it: the original, and what the chain
    /// has made of it.
    fn set_models(&self, word: &str, options: &mut Map<String, Value>) {
        let (original, model) = (Some(self.original), Some(self.model.as_str()));
        let (scores, blocks) = (self.scores.as_deref(), self.blocks.as_deref());
        let named = match word {
            "distill" => vec![("teacher", original), ("student", model)],
            "scratch" => vec![("config", model)],
            "eval" => vec![("model", model), ("teacher", original)],
            "blocks" => vec![("model", model), ("scores", scores)],
            "prune" | "search" => vec![("model", model), ("scores", scores), ("blocks", blocks)],
            _ => vec![("model", model)],
        };
        for (key, value) in named {
            if let Some(value) = value {
                options.entry(key).or_insert_with(|| value.into());
            }
        }
    }
}
