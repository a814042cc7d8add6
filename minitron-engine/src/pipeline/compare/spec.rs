//! A comparison as it is written: named strategies, each a chain of jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::eval::EvalOptions;
use super::super::recipe::{JOBS, PluginFile, Stage, StageOptions};
use crate::search::Predicate;
use minitron_core::digest;
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
        let in_file = |message: String| Error::Recipe(format!("{}: {message}", path.display()));
        let mut spec: Spec =
            toml::from_str(&text).map_err(|e| in_file(e.to_string().trim_end().to_owned()))?;
        spec.path = path.to_path_buf();
        let dir = path.parent().unwrap_or(Path::new(""));
        spec.plugins
            .values_mut()
            .for_each(|file| file.path = dir.join(&file.path));
        spec.check().map_err(|e| e.at(path.display().to_string()))?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Recipe(message));
        if self.rows.is_empty() || self.seeds.is_empty() {
            return wrong("rows, seeds: expected at least one of each".into());
        }
        let is_job = |job: &String| job == "scratch" || JOBS.contains(&job.as_str());
        if let Some(key) = self.all.keys().find(|key| !is_job(key)) {
            return Err(Error::unknown("job", key, JOBS.into_iter().chain(["scratch"])).at("all"));
        }
        for (idx, row) in self.rows.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_+".contains(c);
            if row.name.is_empty() || !row.name.chars().all(plain) {
                return wrong(format!(
                    "rows[{idx}]: name: expected letters, digits, `-`, `_`, `+`, got `{}`",
                    row.name
                ));
            }
            if self
                .rows
                .iter()
                .take(idx)
                .any(|other| other.name == row.name)
            {
                return wrong(format!("two rows are called `{}`", row.name));
            }
            for &seed in &self.seeds {
                self.links(row, seed)?;
            }
        }
        let known = |name: &String| self.rows.iter().any(|row| row.name == *name);
        for check in &self.checks {
            for name in Predicate::parse(&check.holds)?.names() {
                let row = name.split_once('.').map_or("", |(row, _)| row).to_owned();
                if !known(&row) {
                    return wrong(format!(
                        "checks: `{}`: `{name}`: expected ROW.COLUMN of a row here",
                        check.holds
                    ));
                }
            }
        }
        let named = self
            .ratios
            .iter()
            .flat_map(|ratio| ratio.rows.iter().chain(&ratio.reference));
        match named.into_iter().find(|name| !known(name)) {
            Some(name) => Err(Error::unknown(
                "row",
                name,
                self.rows.iter().map(|row| row.name.as_str()),
            )),
            None => Ok(()),
        }
    }

    /// The jobs of a row, each with the model that the ones before it made.
    ///
    /// # Errors
    /// `Recipe` for an unknown job or option.
    pub(super) fn links(&self, row: &Row, seed: u64) -> Result<Vec<Link>> {
        let chain = row.chain.as_ref().unwrap_or(&self.chain);
        let times = |job: &str| chain.iter().filter(|word| *word == job).count();
        let is_known = |key: &str| match key.split_once('.') {
            None => times(key) > 0,
            Some((job, n)) => n
                .parse()
                .is_ok_and(|n: usize| (1..=times(job)).contains(&n)),
        };
        if let Some(key) = row.own.keys().find(|key| !is_known(key)) {
            return Err(Error::unknown(
                "job of this row's chain",
                key,
                chain.iter().map(String::as_str),
            )
            .at(format!("row `{}`", row.name)));
        }
        let mut course = Course {
            spec: self,
            model: self.model.clone(),
            scores: None,
            is_trained: false,
        };
        let mut links: Vec<Link> = Vec::new();
        for (idx, word) in chain.iter().enumerate() {
            let nth = 1 + chain
                .iter()
                .take(idx)
                .filter(|other| *other == word)
                .count();
            let link = course
                .link(row, word, nth, seed)
                .map_err(|e| e.at(format!("row `{}`: {word}", row.name)))?;
            links.push(link);
        }
        Ok(links)
    }

    /// How the original is measured: as the first row that is evaluated in the end. None where no
    /// row is evaluated.
    ///
    /// # Errors
    /// As [`Spec::links`].
    pub(super) fn original(&self) -> Result<Option<Original>> {
        let seed = self.seeds.first().copied().unwrap_or(0);
        let mut first: Option<EvalOptions> = None;
        for row in &self.rows {
            let Some(Link { stage, .. }) = self
                .links(row, seed)?
                .into_iter()
                .rfind(|link| link.word == "eval")
            else {
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

/// A job's folder: equal jobs have one.
fn content_name(word: &str, options: &StageOptions, seed: u64) -> String {
    let content = serde_json::json!([options, seed]).to_string();
    format!(
        "{word}-{}",
        digest::of_text(&content).get(..10).unwrap_or_default()
    )
}

/// What a chain has reached.
struct Course<'a> {
    spec: &'a Spec,
    model: String,
    scores: Option<String>,
    is_trained: bool,
}

impl Course<'_> {
    fn link(&mut self, row: &Row, word: &str, nth: usize, seed: u64) -> Result<Link> {
        let mut options = self.spec.all.get(word).cloned().unwrap_or_default();
        for key in [word.to_owned(), format!("{word}.{nth}")] {
            options.extend(row.own.get(&key).cloned().unwrap_or_default());
        }
        let mut set =
            |key: &str, value: &str| _ = options.entry(key).or_insert_with(|| value.into());
        let (original, model) = (self.spec.model.clone(), self.model.clone());
        let is_training = ["distill", "train", "scratch"].contains(&word);
        match word {
            "distill" => {
                set("teacher", &original);
                set("student", &model);
            }
            "scratch" => set("config", &model),
            "eval" => {
                set("model", &model);
                set("teacher", &original);
            }
            "prune" | "search" => {
                set("model", &model);
                self.scores.iter().for_each(|scores| set("scores", scores));
            }
            _ => set("model", &model),
        }
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
            self.spec.seeds.first().copied().unwrap_or(0)
        };
        let name = content_name(word, &parsed, seed);
        match word {
            "score" => self.scores = Some(name.clone()),
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
}
