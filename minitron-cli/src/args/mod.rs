//! What can be typed.

mod pruning;
mod search;
mod training;

pub use pruning::Prune;
pub use search::Search;
pub use training::{Distill, Train, Training};

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use minitron_core::registry::Kind;
use minitron_engine::jobs::{
    BlocksOptions, ComputeType, EvalOptions, GenerateOptions, InspectOptions, ScoreOptions,
};
use minitron_engine::train::Sharding;

/// Compress language models by structured pruning and knowledge distillation.
#[derive(Debug, Parser)]
#[command(name = "minitron", version, max_term_width = 120)]
pub struct Arguments {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Common {
    /// Where models compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto")]
    pub device: String,
    /// What models compute in: f32, bf16 or f16 [default: f32 on a CPU, bf16 on a GPU]
    #[arg(long, global = true, value_name = "TYPE")]
    pub dtype: Option<ComputeType>,
    /// CPU threads [default: all cores]
    #[arg(long, global = true)]
    pub threads: Option<u16>,
    /// Seed of everything that is drawn; a comparison's only one [default: 0, or the file's]
    #[arg(long, global = true)]
    pub seed: Option<u64>,
    /// A library of plugins to open besides those in the folders of MINITRON_PLUGIN_PATH; may be
    /// given again
    #[arg(long, global = true, value_name = "LIB")]
    pub plugin: Vec<PathBuf>,
    /// One JSON object on stdout instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress on stderr
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Log lines on stderr: error, warn, info, debug or trace, or per room,
    /// `minitron_engine::train=debug` [default: MINITRON_LOG, or none]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<String>,
    /// A file of all spans with their times, which chrome://tracing and ui.perfetto.dev open
    #[arg(long, global = true, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// How long a rank waits for the others, where there are several
    #[arg(long, global = true, default_value_t = 300, value_name = "S")]
    pub comm_timeout: u64,
    /// Compare what the ranks are about to do before each collective: slower, and names ranks that
    /// differ
    #[arg(long, global = true)]
    pub check_collectives: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sizes, parameters, memory and legal pruned sizes of a model
    Inspect(InspectOptions),
    /// What is registered
    Plugins {
        /// list, show, new or check
        #[command(subcommand)]
        command: Plugins,
    },
    /// Held-out loss and perplexity, KL to a teacher, tasks
    Eval(EvalOptions),
    /// One calibration pass: a score for every neuron, head, channel and layer
    Score(Score),
    /// What each part of each layer costs at smaller sizes, for `prune --blocks` to plan by
    Blocks(Blocks),
    /// Rank, plan, slice, write
    Prune(Box<Prune>),
    /// Train from random weights, or go on with a model
    Train(Box<Train>),
    /// Retrain a student to give its teacher's distribution
    Distill(Box<Distill>),
    /// The best small shape: candidates from sizes alone, ranked by short distillation
    Search(Box<Search>),
    /// Continue a prompt
    Generate(GenerateOptions),
    /// Whether a recipe can be meant, and what recipes may hold
    Recipe {
        /// check or schema
        #[command(subcommand)]
        command: RecipeCommand,
    },
    /// The stages of a recipe, those left out whose inputs did not change
    Run(Run),
    /// Strategies side by side: rows, columns, what they share computed once
    Compare(Compare),
    /// The whole job on a bundled grammar of stories: train, score, prune, distil, evaluate
    Demo(Demo),
    /// One page about runs, searches, comparisons or stages, to look at
    Report(Report),
    /// How far a running job has come
    Watch(Watch),
    /// A command as several processes on this machine: train, distill, score or search
    Launch(Launch),
}

impl Command {
    /// As it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Inspect(_) => "inspect",
            Command::Plugins { .. } => "plugins",
            Command::Eval(_) => "eval",
            Command::Score(_) => "score",
            Command::Blocks(_) => "blocks",
            Command::Prune(_) => "prune",
            Command::Train(_) => "train",
            Command::Distill(_) => "distill",
            Command::Search(_) => "search",
            Command::Generate(_) => "generate",
            Command::Recipe { .. } => "recipe",
            Command::Run(_) => "run",
            Command::Compare(_) => "compare",
            Command::Demo(_) => "demo",
            Command::Report(_) => "report",
            Command::Watch(_) => "watch",
            Command::Launch(_) => "launch",
        }
    }

    /// Whether several processes can be at it together.
    pub fn knows_ranks(&self) -> bool {
        matches!(
            self,
            Command::Score(_)
                | Command::Blocks(_)
                | Command::Prune(_)
                | Command::Train(_)
                | Command::Distill(_)
                | Command::Search(_)
        )
    }

    /// Whether each process keeps a part of every layer, so that layers come and go.
    pub fn shards_layers(&self) -> bool {
        let training = match self {
            Command::Train(it) => &it.options.training,
            Command::Distill(it) => &it.options.training,
            _ => return false,
        };
        training.shard == Sharding::Layers
    }

    /// Whether the others do what a lost process had to.
    pub fn tolerates_losses(&self) -> bool {
        matches!(self, Command::Search(_))
    }
}

/// `plugins`
#[derive(Debug, Subcommand)]
pub enum Plugins {
    /// All plugins by kind
    List,
    /// One plugin: parameters, defaults, example, source
    Show {
        /// KIND/NAME, for example importance/activation
        name: String,
    },
    /// Write a crate with a plugin that builds and runs as it is
    New {
        /// Its contract, for example importance
        kind: Kind,
        /// A folder that is not there yet; its name becomes the crate's and the plugin's
        dir: PathBuf,
    },
    /// Whether a library's handshake agrees with this program's, and its plugins keep what every
    /// plugin has to
    Check {
        /// The library
        library: PathBuf,
    },
}

/// `recipe`
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Read a recipe and build every plugin that it names, without running anything
    Check {
        /// The TOML file
        file: PathBuf,
    },
    /// JSON Schema of recipes with the plugins there are, for editors that complete TOML
    Schema,
}

/// `score`
#[derive(Debug, Args)]
pub struct Score {
    #[command(flatten)]
    pub options: ScoreOptions,
    /// Where the scores go
    #[arg(long)]
    pub out: PathBuf,
    /// Replace an existing output
    #[arg(long)]
    pub force: bool,
}

/// `blocks`
#[derive(Debug, Args)]
pub struct Blocks {
    #[command(flatten)]
    pub options: BlocksOptions,
    /// Which metric decides where two scored an axis: LABEL, or KIND=LABEL
    #[arg(long = "by")]
    pub by: Vec<String>,
    /// Where the table goes
    #[arg(long)]
    pub out: PathBuf,
    /// Replace an existing output
    #[arg(long)]
    pub force: bool,
}

/// `run`
#[derive(Debug, Args)]
pub struct Run {
    /// The recipe
    #[arg(required_unless_present = "verify", requires = "out")]
    pub recipe: Option<PathBuf>,
    /// One folder a stage, and run.json; an existing run is continued
    #[arg(long, requires = "recipe", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What an existing run is given anyway: an interrupted training goes on at its last checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Start over, replacing the folder
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// A finished run: alone, whether what it left and read is still as recorded; beside a recipe,
    /// whether the new run left the same. Says what differs; exit code 1 where an artefact does
    #[arg(long, value_name = "DIR")]
    pub verify: Option<PathBuf>,
}

/// `compare`
#[derive(Debug, Args)]
pub struct Compare {
    /// The comparison
    pub spec: PathBuf,
    /// One folder a stage, and compare.json; an existing comparison is continued
    #[arg(long)]
    pub out: PathBuf,
    /// Start over, replacing the folder
    #[arg(long)]
    pub force: bool,
}

/// `demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// As with `run`
    #[arg(long, default_value = "minitron-demo")]
    pub out: PathBuf,
    /// Start over, replacing the folder
    #[arg(long)]
    pub force: bool,
}

/// `report`
#[derive(Debug, Args)]
pub struct Report {
    /// Folders of runs, searches, comparisons, or single stages
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// The page, an HTML file that needs no other; an earlier page is replaced
    #[arg(long, default_value = "report.html")]
    pub out: PathBuf,
    /// Replace an existing file that is no earlier page
    #[arg(long)]
    pub force: bool,
}

/// `watch`
#[derive(Debug, Args)]
pub struct Watch {
    /// The folder of a run, search, comparison, or of a single training
    pub dir: PathBuf,
    /// Look once, and end
    #[arg(long)]
    pub once: bool,
    /// Seconds between looks
    #[arg(long, default_value_t = 2.0, value_name = "S")]
    pub interval: f64,
}

/// `launch`
#[derive(Debug, Args)]
pub struct Launch {
    /// Processes
    #[arg(long, value_name = "N")]
    pub nproc: NonZeroUsize,
    /// How often all are started again after one has failed; the command has to say --resume
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub max_restarts: u64,
    /// The command, as it is typed after `minitron`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use minitron_engine::jobs::{
        DistillOptions, PruneOptions, ReconstructOptions, TeacherOptions, TrainOptions,
        TrainingOptions,
    };
    use minitron_engine::search::SearchOptions;

    use super::*;

    /// What a command's options are where no more than these words is typed.
    fn typed<T: Args>(words: &[&str]) -> T {
        let command = T::augment_args(clap::Command::new("x").no_binary_name(true));
        T::from_arg_matches(&command.get_matches_from(words)).unwrap()
    }

    /// The command line and recipes have one default for each option.
    #[test]
    fn what_is_not_typed_is_as_what_a_recipe_leaves_out() {
        assert_eq!(
            typed::<EvalOptions>(&["m"]),
            EvalOptions {
                model: "m".into(),
                ..EvalOptions::default()
            }
        );
        assert_eq!(
            typed::<GenerateOptions>(&["m"]),
            GenerateOptions {
                model: "m".into(),
                ..GenerateOptions::default()
            }
        );
        let score = ScoreOptions {
            model: "m".into(),
            data: vec!["t".parse().unwrap()],
            ..ScoreOptions::default()
        };
        assert_eq!(typed::<ScoreOptions>(&["m", "--data", "t"]), score);
        let blocks = BlocksOptions {
            model: "m".into(),
            scores: "s".into(),
            ..BlocksOptions::default()
        };
        assert_eq!(typed::<BlocksOptions>(&["m", "--scores", "s"]), blocks);
        // A recipe that says nothing of rounds has none beyond the first.
        let prune = PruneOptions {
            model: "m".into(),
            rounds: 1,
            ..PruneOptions::default()
        };
        assert_eq!(typed::<PruneOptions>(&["m"]), prune);
        assert_eq!(
            typed::<ReconstructOptions>(&[]),
            ReconstructOptions::default()
        );
        assert_eq!(typed::<TeacherOptions>(&[]), TeacherOptions::default());
        assert_eq!(typed::<TrainingOptions>(&[]), TrainingOptions::default());
        let train = TrainOptions {
            model: Some("m".into()),
            ..TrainOptions::default()
        };
        assert_eq!(typed::<TrainOptions>(&["m"]), train);
        let distill = DistillOptions {
            teacher: "t".into(),
            student: "s".into(),
            ..DistillOptions::default()
        };
        assert_eq!(
            typed::<DistillOptions>(&["--teacher", "t", "--student", "s"]),
            distill
        );
        let search = SearchOptions {
            model: "m".into(),
            scores: "s".into(),
            ..SearchOptions::default()
        };
        assert_eq!(typed::<SearchOptions>(&["m", "--scores", "s"]), search);
    }
}
