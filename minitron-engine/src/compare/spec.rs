//! A comparison as it is written: named strategies, each a chain of jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chain::{ChainState, Link, content_name, is_of_chain, n_times};
use crate::jobs::eval::EvalOptions;
use crate::recipe::{JOBS, PluginFile, Stage, StageOptions};
use crate::search::Predicate;
use minitron_core::error::{Error, Result};
use minitron_core::files::read_text;

/// A comparison, read and checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The file.
    #[serde(skip)]
    pub path: PathBuf,
    /// What is compared.
    #[serde(default)]
    pub title: String,
    /// The original: what is scored, pruned, taught by, and compared with.
    pub model: String,
    /// Each training runs once with each; what draws nothing runs with the first.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// Libraries of plugins, by a name of the author's own.
    #[serde(default)]
    pub plugins: BTreeMap<String, PluginFile>,
    /// The jobs of a row, in order; `scratch` is a training from random weights in the shape
    /// reached so far.
    #[serde(default = "usual_chain")]
    pub chain: Vec<String>,
    /// Columns, in order; all that came out where empty.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Options of every row's jobs, by job.
    #[serde(default)]
    pub all: BTreeMap<String, Map<String, Value>>,
    /// The strategies.
    pub rows: Vec<Row>,
    /// What should hold between them.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// How many tokens some rows save.
    #[serde(default)]
    pub ratios: Vec<Ratio>,
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

fn usual_chain() -> Vec<String> {
    ["score", "prune", "eval", "distill", "eval"]
        .map(str::to_owned)
        .to_vec()
}

/// A strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name in checks and files.
    pub name: String,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its own chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Vec<String>>,
    /// Its own seeds, where it is too dear for those of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Vec<u64>>,
    /// Its own options by job (`prune`), or by job and place among the chain's (`prune.2`), laid
    /// over those of all.
    #[serde(flatten)]
    pub own: BTreeMap<String, Map<String, Value>>,
}

/// Something that should hold between rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// In words.
    pub says: String,
    /// As a question: `{width.loss} < {depth.loss}`, names are `row.column`.
    pub holds: String,
}

/// How many tokens of one kind of training another one saves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// Rows at rising budgets.
    pub rows: Vec<String>,
    /// Rows of the dear kind at rising budgets.
    pub reference: Vec<String>,
    /// The column in which they should be equal.
    #[serde(default = "by_loss")]
    pub by: String,
}

fn by_loss() -> String {
    "loss".into()
}

/// Which job measures the original.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Original {
    /// An evaluation of its own.
    Own(Box<Link>),
    /// That of the row with this name, which leaves the original as it is.
    Row(String),
}

impl Spec {
    /// Reads a TOML file; relative paths in it start at its folder.
    ///
    /// # Errors
    /// `Recipe` naming the row and key at fault.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Recipe(format!("{}: no such spec", path.display()))
            }
            std::io::ErrorKind::InvalidData => Error::Recipe(format!("{}: {e}", path.display())),
            _ => Error::io(path, e),
        })?;
        let mut spec: Spec = toml::from_str(&text).map_err(|e| {
            Error::Recipe(format!("{}: {}", path.display(), e.to_string().trim_end()))
        })?;
        spec.path = path.to_path_buf();
        let dir = path.parent().unwrap_or(Path::new(""));
        for file in spec.plugins.values_mut() {
            file.path = dir.join(&file.path);
        }
        spec.check().map_err(|e| e.at(path.display().to_string()))?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        if self.rows.is_empty() || self.seeds.is_empty() {
            let message = "rows, seeds: expected at least one of each";
            return Err(Error::Recipe(message.into()));
        }
        let jobs = JOBS.into_iter().chain(["scratch"]);
        for key in self.all.keys() {
            if key != "scratch" && !JOBS.contains(&key.as_str()) {
                return Err(Error::unknown("job", key, jobs).at("all"));
            }
        }
        self.check_rows()?;
        self.check_checks()?;
        self.check_ratios()
    }

    fn check_rows(&self) -> Result<()> {
        for (idx, row) in self.rows.iter().enumerate() {
            let name = &row.name;
            if name.is_empty() || !name.chars().all(is_name_char) {
                return Err(Error::Recipe(format!(
                    "rows[{idx}]: name: expected letters, digits, `-`, `_`, `+`, got `{name}`"
                )));
            }
            if self.rows.iter().take(idx).any(|other| other.name == *name) {
                return Err(Error::Recipe(format!("two rows are called `{name}`")));
            }
            if row.seeds.as_ref().is_some_and(Vec::is_empty) {
                return Err(Error::Recipe(format!(
                    "row `{name}`: seeds: expected at least one"
                )));
            }
            for &seed in self.seeds_of(row) {
                self.links(row, seed)?;
            }
        }
        Ok(())
    }

    fn check_checks(&self) -> Result<()> {
        for Check { holds, .. } in &self.checks {
            for name in Predicate::parse(holds)?.names() {
                let row = name.split_once('.').map_or("", |(row, _)| row);
                if !self.has_row(row) {
                    return Err(Error::Recipe(format!(
                        "checks: `{holds}`: `{name}`: expected ROW.COLUMN of a row here"
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_ratios(&self) -> Result<()> {
        for ratio in &self.ratios {
            for name in ratio.rows.iter().chain(&ratio.reference) {
                if !self.has_row(name) {
                    let known = self.rows.iter().map(|row| row.name.as_str());
                    return Err(Error::unknown("row", name, known));
                }
            }
        }
        Ok(())
    }

    fn has_row(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.name == name)
    }

    /// Seeds that a row runs with.
    pub(super) fn seeds_of<'s>(&'s self, row: &'s Row) -> &'s [u64] {
        row.seeds.as_deref().unwrap_or(&self.seeds)
    }

    /// What draws nothing runs with this one.
    pub(super) fn first_seed(&self) -> u64 {
        self.seeds.first().copied().unwrap_or(0)
    }

    /// The jobs of a row, each with the model that the ones before it made.
    ///
    /// # Errors
    /// `Recipe` for an unknown job or option.
    pub(super) fn links(&self, row: &Row, seed: u64) -> Result<Vec<Link>> {
        let chain = row.chain.as_ref().unwrap_or(&self.chain);
        if let Some(key) = row.own.keys().find(|key| !is_of_chain(key, chain)) {
            let jobs = chain.iter().map(String::as_str);
            let unknown = Error::unknown("job of this row's chain", key, jobs);
            return Err(unknown.at(format!("row `{}`", row.name)));
        }
        let mut state = ChainState::new(&self.all, &self.model, self.first_seed());
        let mut links: Vec<Link> = Vec::new();
        for (idx, word) in chain.iter().enumerate() {
            let nth = 1 + n_times(word, chain.iter().take(idx));
            let link = state.link(&row.own, (word, nth), seed);
            links.push(link.map_err(|e| e.at(format!("row `{}`: {word}", row.name)))?);
        }
        Ok(links)
    }

    /// How the original is measured: as the first row that is evaluated in the end. None where no
    /// row is evaluated.
    ///
    /// # Errors
    /// As [`Spec::links`].
    pub(super) fn original(&self) -> Result<Option<Original>> {
        let seed = self.first_seed();
        let mut first: Option<EvalOptions> = None;
        for row in &self.rows {
            let mut links = self.links(row, seed)?.into_iter();
            let Some(Link { stage, .. }) = links.rfind(|link| link.word == "eval") else {
                continue;
            };
            match stage.options {
                StageOptions::Eval(options) if options.model == self.model => {
                    return Ok(Some(Original::Row(row.name.clone())));
                }
                StageOptions::Eval(options) => first = first.or(Some(options)),
                _ => {}
            }
        }
        let Some(options) = first else {
            return Ok(None);
        };
        let options = StageOptions::Eval(EvalOptions {
            model: self.model.clone(),
            ..options
        });
        let stage = Stage {
            name: content_name("eval", &options, seed),
            options,
        };
        Ok(Some(Original::Own(Box::new(Link {
            stage,
            seed,
            word: "eval".into(),
            is_trained: true,
        }))))
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_+".contains(c)
}
