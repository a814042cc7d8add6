//! A recipe: named stages, each a job with its options.

pub(crate) mod inputs;
pub(crate) mod run;
pub(crate) mod run_dir;
pub(crate) mod schema;
pub(crate) mod verify;
pub(crate) mod versions;

pub use run::run;
pub use run_dir::RunDir;
pub(crate) use run_dir::{RunRecord, StageRecord};
pub use schema::{check_recipe, recipe_schema};
pub use verify::verify;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use schemars::Schema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::jobs::{
    BlocksOptions, DistillOptions, EvalOptions, GenerateOptions, PruneOptions, ScoreOptions,
    TrainOptions,
};
use crate::search::SearchOptions;
use minitron_core::error::{Error, Result};
use minitron_core::files::read_text;
use minitron_core::registry::inlined;

/// A library of plugins that a recipe or a command line names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginFile {
    /// The file.
    pub path: PathBuf,
    /// The only content that is accepted, in hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// A recipe, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The file.
    pub path: PathBuf,
    /// Seed of everything that is drawn, unless the command line gives one.
    pub seed: Option<u64>,
    /// Libraries that its plugins come from, with their paths taken from the recipe's folder.
    pub plugins: Vec<PluginFile>,
    /// In order; each may name earlier ones.
    pub stages: Vec<Stage>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Its folder's name, and how later stages refer to it.
    pub name: String,
    /// The job.
    #[serde(flatten)]
    pub options: StageOptions,
}

/// The job of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum StageOptions {
    /// Calibration pass.
    Score(ScoreOptions),
    /// What smaller parts of layers cost.
    Blocks(BlocksOptions),
    /// Planning and slicing.
    Prune(PruneOptions),
    /// Training without a teacher.
    Train(TrainOptions),
    /// Training with one.
    Distill(DistillOptions),
    /// Measurements.
    Eval(EvalOptions),
    /// Candidates, and the best of them.
    Search(SearchOptions),
    /// Sample text.
    Generate(GenerateOptions),
}

pub(crate) const JOBS: [&str; 8] = [
    "score", "blocks", "prune", "train", "distill", "eval", "search", "generate",
];

impl StageOptions {
    /// The word after `do`.
    pub fn job(&self) -> &'static str {
        match self {
            StageOptions::Score(_) => "score",
            StageOptions::Blocks(_) => "blocks",
            StageOptions::Prune(_) => "prune",
            StageOptions::Train(_) => "train",
            StageOptions::Distill(_) => "distill",
            StageOptions::Eval(_) => "eval",
            StageOptions::Search(_) => "search",
            StageOptions::Generate(_) => "generate",
        }
    }

    /// The options of a job by its name.
    ///
    /// # Errors
    /// `Recipe` for an unknown job or option, listing the known ones.
    pub(crate) fn parse(job: &str, mut object: Map<String, Value>) -> Result<Self> {
        rename(&mut object)?;
        match job {
            "score" => parse_options(object).map(StageOptions::Score),
            "blocks" => parse_options(object).map(StageOptions::Blocks),
            "prune" => parse_options(object).map(StageOptions::Prune),
            "train" => parse_options(object).map(StageOptions::Train),
            "distill" => parse_options(object).map(StageOptions::Distill),
            "eval" => parse_options(object).map(StageOptions::Eval),
            "search" => parse_options(object).map(StageOptions::Search),
            "generate" => parse_options(object).map(StageOptions::Generate),
            other => Err(Error::unknown("stage", other, JOBS)),
        }
    }
}

impl Recipe {
    /// Reads a TOML file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Recipe(format!("{}: no such recipe", path.display()))
            }
            std::io::ErrorKind::InvalidData => Error::Recipe(format!("{}: {e}", path.display())),
            _ => Error::io(path, e),
        })?;
        Self::parse(&text, path)
    }

    /// Reads TOML text; relative paths in it start at the folder of `path`.
    ///
    /// ```
    /// use minitron_engine::recipe::Recipe;
    ///
    /// let text = r#"
    ///     seed = 7
    ///     [[stages]]
    ///     name = "scores"
    ///     do = "score"
    ///     model = "teacher"
    ///     data = ["train.jsonl"]
    /// "#;
    /// let recipe = Recipe::parse(text, "recipes/mine.toml".as_ref())?;
    /// assert_eq!((recipe.seed, recipe.stages[0].options.job()), (Some(7), "score"));
    ///
    /// let error = Recipe::parse(&text.replace("model", "modle"), "mine.toml".as_ref());
    /// assert!(error.unwrap_err().to_string().contains("no option is called `modle`"));
    /// # Ok::<(), minitron_core::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Recipe` with the stage and key at fault, and the known ones.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let value: Value =
            toml::from_str(text).map_err(|e| in_file(path, e.to_string().trim_end()))?;
        let Value::Object(mut object) = value else {
            return Err(in_file(path, "expected a table"));
        };
        let seed = match object.shift_remove("seed") {
            None => None,
            Some(seed) => Some(seed.as_u64().ok_or_else(|| {
                in_file(path, format!("seed: expected a whole number, got {seed}"))
            })?),
        };
        let plugins = match object.shift_remove("plugins") {
            None => Vec::new(),
            Some(table) => {
                parse_plugins(table, path).map_err(|e| in_file(path, format!("plugins: {e}")))?
            }
        };
        let Some(Value::Array(raw)) = object.shift_remove("stages") else {
            let message = "expected [[stages]], each with `name` and `do`";
            return Err(in_file(path, message));
        };
        if let Some(key) = object.keys().next() {
            let message = format!("unknown key `{key}`; known: seed, plugins, stages");
            return Err(in_file(path, message));
        }
        let mut stages: Vec<Stage> = Vec::new();
        for (idx, stage) in raw.into_iter().enumerate() {
            let stage = parse_stage(stage, idx).map_err(|e| e.at(path.display().to_string()))?;
            let name = &stage.name;
            if stages.iter().any(|other| other.name == *name) {
                return Err(in_file(path, format!("two stages are called `{name}`")));
            }
            stages.push(stage);
        }
        if stages.is_empty() {
            return Err(in_file(path, "no stages; expected at least one"));
        }
        Ok(Recipe {
            path: path.to_path_buf(),
            seed,
            plugins,
            stages,
        })
    }
}

fn in_file(path: &Path, message: impl Display) -> Error {
    Error::Recipe(format!("{}: {message}", path.display()))
}

/// `[plugins]`: a name of the user's own for each library, and where it is.
fn parse_plugins(table: Value, recipe: &Path) -> serde_json::Result<Vec<PluginFile>> {
    let files: Map<String, Value> = serde_json::from_value(table)?;
    let dir = recipe.parent().unwrap_or(Path::new(""));
    let mut plugins = Vec::with_capacity(files.len());
    for (_, value) in files {
        let mut file: PluginFile = serde_json::from_value(value)?;
        file.path = dir.join(&file.path);
        plugins.push(file);
    }
    Ok(plugins)
}

fn parse_stage(value: Value, idx: usize) -> Result<Stage> {
    let Value::Object(mut object) = value else {
        return Err(Error::Recipe(format!("stages[{idx}]: expected a table")));
    };
    let (name, job) = (
        word(&mut object, "name", idx)?,
        word(&mut object, "do", idx)?,
    );
    if !is_stage_name(&name) {
        return Err(Error::Recipe(format!(
            "stages[{idx}]: name: expected letters, digits, `-`, `_`, got `{name}`"
        )));
    }
    let options = StageOptions::parse(&job, object);
    let options = options.map_err(|e| e.at(format!("stages[{idx}] ({name})")))?;
    Ok(Stage { name, options })
}

/// Takes a word that a stage cannot do without.
fn word(stage: &mut Map<String, Value>, key: &str, idx: usize) -> Result<String> {
    match stage.shift_remove(key) {
        Some(Value::String(word)) => Ok(word),
        _ => Err(Error::Recipe(format!(
            "stages[{idx}]: expected `{key} = \"…\"`"
        ))),
    }
}

/// Whether a folder in a run's may have this name.
fn is_stage_name(name: &str) -> bool {
    let mut chars = name.chars();
    let is_plain = chars.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    is_plain && !name.is_empty() && !name.starts_with('.') && name != "run.json"
}

/// The options of a job with their defaults.
pub(crate) fn default_options(job: &str) -> Map<String, Value> {
    let value = match job {
        "score" => serde_json::to_value(ScoreOptions::default()),
        "blocks" => serde_json::to_value(BlocksOptions::default()),
        "prune" => serde_json::to_value(PruneOptions::default()),
        "train" => serde_json::to_value(TrainOptions::default()),
        "distill" => serde_json::to_value(DistillOptions::default()),
        "eval" => serde_json::to_value(EvalOptions::default()),
        "search" => serde_json::to_value(SearchOptions::default()),
        _ => serde_json::to_value(GenerateOptions::default()),
    };
    value
        .ok()
        .and_then(|value| value.as_object().cloned())
        .unwrap_or_default()
}

/// The options of a job, each with its type and what its doc comment says.
pub(crate) fn options_schema(job: &str) -> Schema {
    match job {
        "score" => inlined::<ScoreOptions>(),
        "blocks" => inlined::<BlocksOptions>(),
        "prune" => inlined::<PruneOptions>(),
        "train" => inlined::<TrainOptions>(),
        "distill" => inlined::<DistillOptions>(),
        "eval" => inlined::<EvalOptions>(),
        "search" => inlined::<SearchOptions>(),
        _ => inlined::<GenerateOptions>(),
    }
}

/// Options that had another name before.
const RENAMED: [(&str, &str); 1] = [("heal", "reconstruct")];

fn rename(options: &mut Map<String, Value>) -> Result<()> {
    for (older, name) in RENAMED {
        let Some(value) = options.shift_remove(older) else {
            continue;
        };
        if options.insert(name.to_owned(), value).is_some() {
            return Err(Error::Recipe(format!(
                "`{older}` is an older name of `{name}`; give one of them"
            )));
        }
    }
    Ok(())
}

/// serde's own check of unknown keys does not go together with shared options, so it is done here
/// for all jobs.
fn parse_options<T: DeserializeOwned + Serialize + Default>(
    object: Map<String, Value>,
) -> Result<T> {
    let known = serde_json::to_value(T::default()).unwrap_or_default();
    let known = known.as_object().into_iter().flatten();
    let known: Vec<&str> = known.map(|(key, _)| key.as_str()).collect();
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(Error::unknown("option", key, known));
    }
    serde_json::from_value(Value::Object(object)).map_err(|e| Error::Recipe(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe> {
        Recipe::parse(text, Path::new("r.toml"))
    }

    #[test]
    fn a_recipe_reads_and_says_what_is_wrong_where() {
        let good = "[[stages]]\nname = \"a\"\ndo = \"train\"\nconfig = \"c.json\"\ndata = \
                    [\"x.txt#..-3\"]\ntokens = \"2M\"\n";
        let recipe = parse(good).unwrap();
        let StageOptions::Train(options) = &recipe.stages[0].options else {
            panic!("not a train stage")
        };
        assert_eq!(options.training.tokens.0, 2_000_000);
        for (bad, says) in [
            ("", "expected [[stages]]"),
            ("stages = []", "no stages"),
            ("x = 1\nstages = []", "unknown key `x`"),
            ("[[stages]]\nname = \"a\"", "expected `do"),
            (
                "[[stages]]\nname = \"../a\"\ndo = \"eval\"",
                "expected letters",
            ),
            (
                "[[stages]]\nname = \"a\"\ndo = \"evil\"",
                "known: score, blocks, prune",
            ),
            (
                "[[stages]]\nname = \"a\"\ndo = \"score\"\nbatch = 1",
                "stages[0] (a): recipe: no option is called `batch`",
            ),
            (
                "[[stages]]\nname = \"a\"\ndo = \"distill\"\ntokens = -1",
                "stages[0] (a)",
            ),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains(says),
                "{bad}: {error}"
            );
        }
    }
}
