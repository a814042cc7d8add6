//! What every job shares: plugins, machine, progress.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tch::{Device, Kind};
use tracing::info_span;

use crate::data::{TextOptions, Tokenizer};
use crate::ranks::Ranks;
use crate::score::ScoreInputs;
use minitron_core::checkpoint::{Remarks, TensorSource};
use minitron_core::contract::Axis;
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::progress::{Interrupt, Progress, Silent};
use minitron_core::registry::{Kind as PluginKind, PluginSpec, Registry};
use minitron_core::spec::{ModelFolder, ModelSpec, PruneGroup, Sizes};
use minitron_core::windows::{Task, Tokenize, Windows};

/// Which strategies are taken where nobody names one. This crate names no plugin, so whoever links
/// some says.
pub trait Defaults: std::fmt::Debug + Send + Sync {
    /// Metrics of a calibration pass.
    fn metrics(&self) -> Vec<PluginSpec>;
    /// Reconstructions of a student where there is text.
    fn reconstructions(&self) -> Vec<PluginSpec>;
    /// Losses of a distillation.
    fn distillation_losses(&self) -> Vec<PluginSpec>;
    /// Losses of training without a teacher.
    fn training_losses(&self) -> Vec<PluginSpec>;
    /// The allocator for what was asked.
    fn allocator(&self, wanted: &SizeRequest) -> PluginSpec;
    /// What is measured on held-out text.
    fn evaluators(&self, spec: &ModelSpec, has_teacher: bool) -> Vec<PluginSpec>;
    /// The evaluator that reads a task file.
    fn task(&self, path: &Path) -> Result<PluginSpec>;
}

/// A student's size, as asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SizeRequest {
    /// Sizes by kind; with a budget, these are held.
    pub sizes: Sizes,
    /// For example `4B+-5%`.
    pub params: Option<String>,
    /// The same of the parameters that one token goes through.
    pub active_params: Option<String>,
    /// Share of the parameters to keep.
    pub ratio: Option<f64>,
    /// Whether `ratio` leaves embeddings and output head out on both sides.
    pub non_embedding: bool,
    /// Most bytes that weights and key/value cache may take, for example `8GiB`.
    pub memory: Option<String>,
    /// Tokens per sequence of that cache; the model's positions where not given.
    pub seq_len: Option<usize>,
    /// Sequences of that cache; 1 where not given.
    pub batch_size: Option<usize>,
    /// Whether what smaller parts of layers cost is known and decides.
    pub by_blocks: bool,
    /// Most milliseconds of a forward pass, where they are known.
    pub latency_ms: Option<f64>,
    /// Stored bytes of one of the source's parameters.
    pub bytes_per_param: f64,
}

/// What every job shares.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// All plugins.
    pub registry: &'a Registry,
    /// Strategies where none is named.
    pub defaults: &'a dyn Defaults,
    /// Where models compute.
    pub device: Device,
    /// The type they compute in.
    pub kind: Kind,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Whether outputs may be replaced.
    pub force: bool,
    /// Who else is at the job.
    pub ranks: Ranks,
    /// Where to report.
    pub progress: &'a dyn Progress,
    /// How a training is asked to end early.
    pub interrupt: &'a Interrupt,
    /// From a MODEL (folder or hub id) to its folder.
    pub resolve: &'a dyn Fn(&str) -> Result<PathBuf>,
}

/// Of jobs that nobody means to end early.
static NOBODY: LazyLock<Interrupt> = LazyLock::new(Interrupt::default);

fn is_a_folder(model: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(model))
}

impl<'a> Context<'a> {
    /// On the CPU in f32, seed 0, in silence; outputs are not replaced, every MODEL is a folder.
    /// Other choices are fields to set; who means to end a training early gives an `interrupt` of
    /// their own.
    pub fn on_cpu(registry: &'a Registry, defaults: &'a dyn Defaults) -> Self {
        Context {
            registry,
            defaults,
            device: Device::Cpu,
            kind: Kind::Float,
            seed: 0,
            force: false,
            ranks: Ranks::alone(),
            progress: &Silent,
            interrupt: &NOBODY,
            resolve: &is_a_folder,
        }
    }
}

impl Context<'_> {
    /// Opens a model folder to run the model.
    ///
    /// # Errors
    /// As [`Context::open`], and where the model's forward pass is not known.
    pub fn open_to_run(&self, model: &str) -> Result<ModelFolder> {
        let folder = self.open(model)?;
        folder.spec.check_computable()?;
        Ok(folder)
    }

    /// Says what a person should know of a folder.
    pub fn say(&self, remarks: &Remarks) {
        remarks
            .warnings
            .iter()
            .for_each(|warning| self.progress.warn(warning));
        remarks
            .notes
            .iter()
            .for_each(|note| self.progress.note(note));
    }

    /// Opens a model folder and says what of it is odd or not understood.
    pub fn open(&self, model: &str) -> Result<ModelFolder> {
        self.opened(model, ModelFolder::open)
    }

    /// The same; where `layers_apart`, of a model whose layers may differ, or one that has such a
    /// form.
    ///
    /// # Errors
    /// As [`ModelFolder::open_with_layers_apart`].
    pub fn open_as(&self, model: &str, layers_apart: bool) -> Result<ModelFolder> {
        match layers_apart {
            true => self.opened(model, ModelFolder::open_with_layers_apart),
            false => self.open(model),
        }
    }

    fn opened(
        &self,
        model: &str,
        open: fn(&Path, &Registry) -> Result<ModelFolder>,
    ) -> Result<ModelFolder> {
        let _span = info_span!("open", path = model).entered();
        let folder = open(&(self.resolve)(model)?, self.registry)?;
        self.say(&folder.checkpoint.remarks);
        if let [first, ..] = folder.unknown_tensors.as_slice() {
            let (n, architecture) = (folder.unknown_tensors.len(), &folder.spec.architecture);
            let message = format!(
                "{model}: {n} tensors are unknown to `{architecture}` and left out, `{first}` first"
            );
            self.progress.warn(&message);
        }
        Ok(folder)
    }

    /// Loads weights onto the device.
    pub fn load(
        &self,
        source: &dyn TensorSource,
        spec: &ModelSpec,
        trainable: bool,
    ) -> Result<Transformer> {
        let _span = info_span!("load", n_params = spec.n_params(), trainable).entered();
        Transformer::load(
            source,
            spec,
            LoadOptions {
                trainable,
                ..self.load_options()
            },
        )
    }

    /// Where models are and what they compute in; not trainable.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            device: self.device,
            kind: self.kind,
            trainable: false,
        }
    }

    /// What a scoring of a model over a text takes, with the usual values.
    pub(crate) fn score_inputs<'a>(
        &'a self,
        source: &'a dyn TensorSource,
        (spec, groups): (&'a ModelSpec, &'a [PruneGroup]),
        tokenizer: &'a Tokenizer,
        windows: &'a Windows,
    ) -> ScoreInputs<'a> {
        ScoreInputs {
            // An encoder whose tokenizer has no mask is told so when something is to be predicted.
            task: Task::of(spec.options.causal, tokenizer.mask(), self.seed).ok(),
            tokenizer: Some(tokenizer),
            options: self.load_options(),
            seed: self.seed,
            progress: self.progress,
            ..ScoreInputs::new(source, spec, groups, windows)
        }
    }

    /// The model's own tokenizer.
    pub fn tokenizer(&self, folder: &ModelFolder) -> Result<Tokenizer> {
        let _span = info_span!("tokenizer").entered();
        let options = &folder.spec.options;
        Tokenizer::load(
            &folder.checkpoint.dir,
            &folder.checkpoint.config,
            options.vocab,
            options.causal,
        )
    }

    /// The same, for conversations at the time that is set.
    pub fn reader(&self, folder: &ModelFolder, text: &TextOptions) -> Result<Tokenizer> {
        Ok(self.tokenizer(folder)?.at(text.now()?))
    }

    /// Says where a day has found its way into what was read, since another day's would be other
    /// tokens.
    pub fn warn_of_date(&self, tokenizer: &Tokenizer) {
        if tokenizer.has_written_today() {
            let message = "the chat template writes today's date; give --date YYYY-MM-DD to read \
                           the same another day";
            self.progress.warn(message);
        }
    }

    /// The axes: those named, or all that are linked: one that a library brings may name what
    /// another names too.
    pub fn axes(&self, named: &[PluginSpec]) -> Result<Vec<Box<dyn Axis>>> {
        if named.is_empty() {
            let all = self
                .registry
                .of_kind(PluginKind::Axis)
                .filter(|d| !self.registry.is_opened(d));
            return all
                .map(|d| self.registry.build::<dyn Axis>(&PluginSpec::bare(d.tag)))
                .collect();
        }
        named
            .iter()
            .map(|spec| self.registry.build::<dyn Axis>(spec))
            .collect()
    }

    /// The groups of all axes.
    ///
    /// # Errors
    /// `Plugin` when a group breaks the law: its dim is unknown or it has another number of units.
    pub fn groups(&self, axes: &[Box<dyn Axis>], spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        let groups: Vec<Vec<PruneGroup>> = axes
            .iter()
            .map(|axis| axis.groups(spec))
            .collect::<Result<_>>()?;
        let groups = groups.concat();
        for (idx, group) in groups.iter().enumerate() {
            let found = spec.dims.get(&group.dim).map(|dim| dim.size);
            let twice = groups.iter().take(idx).any(|other| other.dim == group.dim);
            if found != Some(group.n_units) || twice {
                let message = format!(
                    "group `{}` of {} units; the model has {found:?}, each dim once",
                    group.dim, group.n_units
                );
                return Err(minitron_core::error::Error::Plugin {
                    tag: group.kind().into(),
                    origin: "axis".into(),
                    message,
                });
            }
        }
        Ok(groups)
    }
}

/// Refuses a count of zero, where nothing would be done.
pub(crate) fn at_least_1(name: &str, value: usize) -> Result<()> {
    if value == 0 {
        Err(Error::Recipe(format!("{name}: expected at least 1")))
    } else {
        Ok(())
    }
}

/// The longest window used where none is stated.
const SEQ_LEN: usize = 512;

/// The window length asked for, or the default that the model has positions for.
pub(crate) fn seq_len_or_default(
    asked: Option<usize>,
    spec: &ModelSpec,
    tokenizer: &Tokenizer,
) -> usize {
    let special_tokens = if tokenizer.special_tokens().is_some() {
        2
    } else {
        0
    };
    asked.unwrap_or_else(|| {
        spec.options
            .max_positions
            .saturating_sub(special_tokens)
            .min(SEQ_LEN)
    })
}
