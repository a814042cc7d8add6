//! What can be typed.

mod pruning;
mod search;
mod training;

pub use pruning::{Prune, ReconstructOptions};
pub use search::Search;
pub use training::{Distill, TeacherArgs, Train, Training, TrainingArgs};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use minitron_core::plan::Bytes;
use minitron_core::registry::{Kind, PluginSpec};
use minitron_engine::data::{Attend, DataSpec, LossMask, Pack, TextOptions};
use minitron_engine::pipeline::{ComputeType, NamedTask};

use crate::commands::{Report, Watch};

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
    /// What models compute in: f32, bf16 or f16
    #[arg(long, global = true, default_value = "f32", value_name = "TYPE")]
    pub dtype: ComputeType,
    /// CPU threads [default: all cores]
    #[arg(long, global = true)]
    pub threads: Option<u16>,
    /// Seed of everything that is drawn; a comparison's only one [default: 0, or the file's]
    #[arg(long, global = true)]
    pub seed: Option<u64>,
    /// A library of plugins to open besides those in the folders of MINITRON_PLUGIN_PATH; may be given again
    #[arg(long, global = true, value_name = "LIB")]
    pub plugin: Vec<PathBuf>,
    /// One JSON object on stdout instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress on stderr
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Log lines on stderr: error, warn, info, debug or trace, or per room, `minitron_engine::train=debug` [default:
    /// MINITRON_LOG, or none]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<String>,
    /// A file of all spans with their times, which chrome://tracing and ui.perfetto.dev open
    #[arg(long, global = true, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sizes, parameters, memory and legal pruned sizes of a model
    Inspect(Inspect),
    /// What is registered
    Plugins {
        /// list, show, new or check
        #[command(subcommand)]
        command: Plugins,
    },
    /// Held-out loss and perplexity, KL to a teacher, tasks
    Eval(Eval),
    /// One calibration pass: a score for every neuron, head, channel and layer
    Score(Score),
    /// Rank, plan, slice, write
    Prune(Box<Prune>),
    /// Train from random weights, or go on with a model
    Train(Box<Train>),
    /// Retrain a student to give its teacher's distribution
    Distill(Box<Distill>),
    /// The best small shape: candidates from sizes alone, ranked by short distillation
    Search(Box<Search>),
    /// Continue a prompt
    Generate(Generate),
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
}

impl Command {
    /// As it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Inspect(_) => "inspect",
            Command::Plugins { .. } => "plugins",
            Command::Eval(_) => "eval",
            Command::Score(_) => "score",
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
        }
    }
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Folder or hub id: org/name or org/name@revision
    pub model: String,
    /// Tokens per sequence of the key/value cache [default: the model's positions]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Sequences of the key/value cache
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
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
    /// Whether a library's handshake agrees with this program's, and its plugins keep what every plugin has to
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

/// How files are read.
#[derive(Debug, Args)]
pub struct Files {
    /// Field of JSON lines, column of Parquet files [default: text]
    #[arg(long)]
    pub field: Option<String>,
    /// Element type of .bin files: u16 or u32 [default: u16]
    #[arg(long)]
    pub token_type: Option<String>,
    /// How records hold conversations: messages, sharegpt, prompt_completion or alpaca [default: recognised]
    #[arg(long)]
    pub form: Option<String>,
    /// How documents become windows: stream (joined, cut at --seq-len), documents (one window each), whole (as many whole
    /// ones as a window has room for) or auto (whole for conversations, stream for the rest)
    #[arg(long, default_value = "auto")]
    pub pack: Pack,
    /// Which tokens are learned and measured: none (all of them) or answers (what the assistant says)
    #[arg(long, default_value = "none")]
    pub mask: LossMask,
    /// How far attention reaches: window, or documents (inside each document of a window alone)
    #[arg(long, default_value = "window")]
    pub attend: Attend,
    /// The day that chat templates write where they ask for one, 2026-11-28 [default: today]
    #[arg(long)]
    pub date: Option<String>,
}

impl Files {
    /// As jobs take them.
    pub fn text(&self) -> TextOptions {
        TextOptions {
            field: self.field.clone(),
            form: self.form.clone(),
            token_type: self.token_type.clone(),
            pack: self.pack,
            mask: self.mask,
            attend: self.attend,
            date: self.date.clone(),
        }
    }
}

/// `eval`
#[derive(Debug, Args)]
pub struct Eval {
    /// Folder or hub id
    pub model: String,
    /// Held-out text: FILE, or FILE#a..b for some of its documents
    #[arg(long, num_args = 1..)]
    pub data: Vec<DataSpec>,
    /// Compare with this model
    #[arg(long)]
    pub teacher: Option<String>,
    /// A task file, NAME=FILE, measured by what its fields ask for; or NAME=EVALUATOR:key=value
    #[arg(long = "task")]
    pub tasks: Vec<NamedTask>,
    /// What to measure on the text, or on files of its own, `name:path=FILE` [default: what suits the model, on the text]
    #[arg(long = "evaluator")]
    pub evaluators: Vec<PluginSpec>,
    /// At most so many windows
    #[arg(long)]
    pub samples: Option<usize>,
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Windows per forward pass
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Compare with a teacher that has another tokenizer, with a warning
    #[arg(long)]
    pub any_model: bool,
    #[command(flatten)]
    pub files: Files,
}

/// `score`
#[derive(Debug, Args)]
pub struct Score {
    /// Folder or hub id
    pub model: String,
    /// Calibration text: FILE, or FILE#a..b for some of its documents
    #[arg(long, num_args = 1.., required = true)]
    pub data: Vec<DataSpec>,
    /// Where the scores go
    #[arg(long)]
    pub out: PathBuf,
    /// A metric, `name:key=value,as=LABEL` [default: activation, block_influence]
    #[arg(long = "metric")]
    pub metrics: Vec<PluginSpec>,
    /// Windows used
    #[arg(long, default_value_t = 1024)]
    pub samples: usize,
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Windows per forward pass
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Store scores of so many resamples of the windows too, for plans that say how close their calls were
    #[arg(long, default_value_t = 0)]
    pub bootstrap: usize,
    /// Hold one layer at a time; an interrupted scoring goes on at the layer it had reached
    #[arg(long)]
    pub stream: bool,
    /// Memory that the process may take, `2GiB`: batches shrink to keep it
    #[arg(long)]
    pub max_memory: Option<Bytes>,
    /// Replace an existing output
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub files: Files,
}

/// `generate`
#[derive(Debug, Args)]
pub struct Generate {
    /// Folder or hub id
    pub model: String,
    /// Text to continue, or with --chat what a user says
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Answer as the assistant of the model's own chat template; without --prompt, line after line of standard input
    #[arg(long)]
    pub chat: bool,
    /// What the system says first, in a chat
    #[arg(long, requires = "chat")]
    pub system: Option<String>,
    /// The day that the chat template writes where it asks for one, 2026-11-28 [default: today]
    #[arg(long, requires = "chat")]
    pub date: Option<String>,
    /// At most so many new tokens
    #[arg(long, default_value_t = 100)]
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token, more draws
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw from the k likeliest only; 0 means all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
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
    /// A finished run: alone, whether what it left and read is still as recorded; beside a recipe, whether the new run left
    /// the same. Says what differs; exit code 1 where an artefact does
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
