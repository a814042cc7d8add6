//! The law of every contract as a function: what `plugins check` asks of an opened library, and
//! what the tests ask of every plugin. A contract's own doc comment states the law, the file of its
//! name tries it on tiny models.

pub mod allocator;
pub mod architecture;
pub mod axis;
pub mod corpus;
pub mod evaluator;
pub mod form;
pub mod importance;
pub mod loss;
pub mod reconstruction;
pub mod state_loss;

pub(crate) mod numbers;
mod samples;
mod state_sites;
mod units;

pub use numbers::gradient_error;
pub use samples::{SampleModel, random_rankings, random_weights, sample_config, samples};

use std::collections::BTreeMap;

use minitron_core::error::{Error, Result};
use minitron_core::registry::{Contract, Descriptor, Kind, PluginSpec, Registry};

/// How a verdict begins where a law could not be tried.
pub const UNTRIED: &str = "its law where";

/// A plugin before its law.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// All plugins.
    pub registry: &'a Registry,
    /// The one in question.
    pub plugin: &'static Descriptor,
    /// Its parameters.
    pub spec: &'a PluginSpec,
}

impl Trial<'_> {
    fn build<C: Contract + ?Sized>(&self) -> Result<Box<C>> {
        self.registry.build(self.spec)
    }

    /// Whether it reads a file that nobody named.
    fn lacks_its_file(&self) -> bool {
        (self.plugin.example)().get("path").is_some() && !self.spec.params.contains_key("path")
    }

    fn broken(&self, message: impl Into<String>) -> Error {
        let Descriptor { tag, origin, .. } = self.plugin;
        Error::Plugin {
            tag: (*tag).to_owned(),
            origin: (*origin).to_owned(),
            message: message.into(),
        }
    }

    fn ensure(&self, holds: bool, message: impl Into<String>) -> Result<()> {
        if holds {
            Ok(())
        } else {
            Err(self.broken(message))
        }
    }

    /// Whatever fails on the samples is the plugin's fault, unless another plugin is named.
    fn blame(&self, error: Error) -> Error {
        match error {
            Error::Plugin { tag, message, .. } if tag == self.plugin.tag => self.broken(message),
            other @ Error::Plugin { .. } => other,
            other => self.broken(other.to_string()),
        }
    }
}

/// Form and law of one plugin; what was checked. A verdict with [`UNTRIED`] names what the law
/// could not be tried without.
///
/// # Errors
/// `Plugin` naming the plugin, the rule and how it was broken.
pub fn check(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let checked = form::check(trial).and_then(|()| law(trial, samples));
    checked
        .map(|law| format!("form, {law}"))
        .map_err(|error| trial.blame(error))
}

/// For every plugin that a library brought, what was checked.
///
/// # Errors
/// As [`check`].
pub fn check_opened(registry: &Registry) -> Result<BTreeMap<String, String>> {
    let samples = samples(registry)?;
    let mut checked = BTreeMap::new();
    let plugins = registry.descriptors().iter();
    for &plugin in plugins.filter(|plugin| registry.is_opened(plugin)) {
        let trial = Trial {
            registry,
            plugin,
            spec: &PluginSpec::bare(plugin.tag),
        };
        checked.insert(
            format!("{}/{}", plugin.kind, plugin.tag),
            check(&trial, &samples)?,
        );
    }
    Ok(checked)
}

fn law(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let kind = trial.plugin.kind;
    if trial.lacks_its_file() && !matches!(kind, Kind::Evaluator | Kind::Corpus) {
        return Ok(format!("{UNTRIED} it has a file"));
    }
    match kind {
        Kind::Architecture => architecture::check(trial, &sample_config(trial.plugin.tag)),
        Kind::Axis => axis::check(trial, samples),
        Kind::Importance => importance::check(trial, samples),
        Kind::Allocator => allocator::check(trial, samples),
        Kind::Reconstruction => reconstruction::check(trial, samples),
        Kind::Loss => loss::check(trial),
        Kind::StateLoss => state_loss::check(trial, samples),
        Kind::Evaluator => evaluator::check(trial),
        Kind::Corpus => corpus::check(trial),
    }
}

/// What an error says that lies with what a plugin was given, rather than with the plugin.
fn of_inputs(error: &Error) -> Option<String> {
    match error {
        Error::Recipe(message) | Error::Plan(message) | Error::Data(message) => {
            Some(message.clone())
        }
        Error::Checkpoint { message, .. } => Some(message.clone()),
        Error::Io { .. } => Some(error.to_string()),
        Error::At { source, .. } => of_inputs(source),
        _ => None,
    }
}
