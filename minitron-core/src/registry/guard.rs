//! What stands between a plugin and a run: a panic inside a plugin becomes an error that names it.
//!
//! It is compiled into the plugin's own library, so that nothing unwinds from one library into
//! another, which ends the process: neither a question, nor a plugin's `Debug`, nor its `Drop`.

mod held;
mod mixers;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Serialize, Serializer};
use serde_json::Value;
use tch::Tensor;

use self::held::{Held, words};
use crate::calibrate::Observation;
use crate::checkpoint::Config;
use crate::contract::{
    Allocator, Architecture, Axis, Corpus, Document, Documents, Evaluator, Importance, LogitLoss,
    Measurements, ModelPair, Need, Reconstruction, Scorer, SitePair, StateLoss, States, Subject,
    TeacherNeed,
};
use crate::error::{Error, Result};
use crate::plan::{Plan, Rankings, Space};
use crate::reconstruct::StudentEditor;
use crate::spec::{CheckpointInfo, ClientLimit, ModelSpec, PruneGroup, Sizes};

/// Whom an error names.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    /// The plugin.
    pub tag: &'static str,
    /// Its crate and version.
    pub origin: &'static str,
}

impl Who {
    /// Runs some of the plugin's code. A failed tensor operation and a broken assumption are the
    /// plugin's, too.
    fn run<R>(self, code: impl FnOnce() -> Result<R>) -> Result<R> {
        match catch_unwind(AssertUnwindSafe(code)) {
            Ok(Err(Error::Torch { op, message })) => {
                Err(self.error(format!("torch: {op}: {message}")))
            }
            Ok(Err(Error::Internal(message))) => Err(self.error(message)),
            Ok(result) => result,
            Err(payload) => Err(self.error(format!("it panicked: {}", words(payload.as_ref())))),
        }
    }

    fn error(self, message: String) -> Error {
        Error::Plugin {
            tag: self.tag.to_owned(),
            origin: self.origin.to_owned(),
            message,
        }
    }
}

/// What a plugin's own code gives, or an empty value where it panics.
pub fn shielded<T: Default>(code: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_default()
}

/// A plugin from its parameters.
///
/// # Errors
/// What its `Deserialize` says, or how it panicked.
pub fn parsed<P: DeserializeOwned>(value: Value) -> serde_json::Result<P> {
    let parsed = catch_unwind(AssertUnwindSafe(|| serde_json::from_value(value)));
    parsed.unwrap_or_else(|payload| {
        Err(serde_json::Error::custom(format!(
            "it panicked: {}",
            words(payload.as_ref())
        )))
    })
}

/// The schema of parameters in one piece: it stands inside others, where a reference would point
/// elsewhere.
pub fn inlined<P: JsonSchema>() -> Schema {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<P>()
}

/// A plugin with its guard. Made by [`plugin!`](crate::plugin).
pub struct Guarded<P> {
    who: Who,
    plugin: Held<P>,
    /// What a question that takes no error for an answer ran into; every later call says it.
    fault: Mutex<Option<String>>,
}

impl<P> Guarded<P> {
    /// Puts a guard before a plugin.
    pub fn new(who: Who, plugin: P) -> Self {
        Guarded {
            who,
            plugin: Held::new(plugin),
            fault: Mutex::new(None),
        }
    }

    fn call<R>(&self, code: impl FnOnce(&P) -> Result<R>) -> Result<R> {
        match self
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
        {
            Some(message) => Err(self.who.error(message)),
            None => self.who.run(|| code(self.plugin.get()?)),
        }
    }

    /// Asks what has no error for an answer; after a panic, the next call that can fail does.
    fn ask<R>(&self, code: impl FnOnce(&P) -> R, fallback: R) -> R {
        self.who
            .run(|| Ok(code(self.plugin.get()?)))
            .unwrap_or_else(|error| {
                if let Error::Plugin { message, .. } = error {
                    *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
                }
                fallback
            })
    }
}

impl<P: fmt::Debug> fmt::Debug for Guarded<P> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.plugin.fmt(f)
    }
}

impl<P: Serialize> Serialize for Guarded<P> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = catch_unwind(AssertUnwindSafe(|| serde_json::to_value(&self.plugin.0)));
        let value = value.map_err(|payload| format!("it panicked: {}", words(payload.as_ref())));
        let value = value.and_then(|value| value.map_err(|error| error.to_string()));
        value
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

/// The methods that typetag adds to a contract.
macro_rules! same_tag {
    () => {
        fn typetag_name(&self) -> &'static str {
            self.plugin
                .get()
                .map_or(self.who.tag, |plugin| plugin.typetag_name())
        }

        fn typetag_deserialize(&self) {}
    };
}

impl<P: Architecture + Serialize> Architecture for Guarded<P> {
    same_tag!();

    // Taken for its own: the question after it names the fault.
    fn recognises(&self, config: &Config) -> bool {
        self.ask(|plugin| plugin.recognises(config), true)
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let mut spec = self.call(|plugin| plugin.spec(evidence))?;
        mixers::guard(self.who, &mut spec)?;
        Ok(spec)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        self.ask(|plugin| plugin.client_limits(spec, sizes), Vec::new())
    }

    fn with_layers_apart(&self, config: &Config) -> Option<Config> {
        self.ask(|plugin| plugin.with_layers_apart(config), None)
    }
}

impl<P: Axis + Serialize> Axis for Guarded<P> {
    same_tag!();

    fn groups(&self, spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
        self.call(|plugin| plugin.groups(spec))
    }

    fn multiple_of(&self) -> Option<usize> {
        self.ask(Axis::multiple_of, None)
    }
}

impl<P: Importance + Serialize> Importance for Guarded<P> {
    same_tag!();

    fn need(&self, group: &PruneGroup) -> Option<Need> {
        self.ask(|plugin| plugin.need(group), Some(Need::Sites(Vec::new())))
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        let scorer = self.call(|plugin| plugin.scorer(group).map(Held::new))?;
        Ok(Box::new(GuardedScorer {
            who: self.who,
            scorer,
        }))
    }
}

#[derive(Debug)]
struct GuardedScorer {
    who: Who,
    scorer: Held<Box<dyn Scorer>>,
}

impl Scorer for GuardedScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        self.who.run(|| self.scorer.get_mut()?.observe(observation))
    }

    // One number that no scorer has: taking it in again is an error.
    fn state(&self) -> Vec<f64> {
        self.who
            .run(|| Ok(self.scorer.get()?.state()))
            .unwrap_or_else(|_| vec![f64::NAN])
    }

    fn merge(&mut self, state: &[f64]) -> Result<()> {
        self.who.run(|| self.scorer.get_mut()?.merge(state))
    }

    fn finish(&self) -> Result<Vec<f32>> {
        self.who.run(|| self.scorer.get()?.finish())
    }
}

impl<P: Allocator + Serialize> Allocator for Guarded<P> {
    same_tag!();

    fn allocate(&self, space: &Space, rankings: &Rankings, spec: &ModelSpec) -> Result<Vec<Plan>> {
        self.call(|plugin| plugin.allocate(space, rankings, spec))
    }
}

impl<P: Reconstruction + Serialize> Reconstruction for Guarded<P> {
    same_tag!();

    fn needs_text(&self) -> bool {
        self.ask(Reconstruction::needs_text, true)
    }

    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        self.call(|plugin| plugin.reconstruct(editor))
    }
}

impl<P: LogitLoss + Serialize> LogitLoss for Guarded<P> {
    same_tag!();

    fn teacher(&self) -> TeacherNeed {
        self.ask(LogitLoss::teacher, TeacherNeed::Nothing)
    }

    fn is_linear_in_teacher(&self) -> bool {
        self.ask(LogitLoss::is_linear_in_teacher, false)
    }

    fn rows(
        &self,
        student_nv: &Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
    ) -> Result<Tensor> {
        self.call(|plugin| plugin.rows(student_nv, teacher_nv, labels_n))
    }

    fn rows_and_gradient(
        &self,
        student_nv: &mut Tensor,
        teacher_nv: Option<&Tensor>,
        labels_n: &Tensor,
        factor: f64,
    ) -> Result<Option<Tensor>> {
        self.call(|plugin| plugin.rows_and_gradient(student_nv, teacher_nv, labels_n, factor))
    }
}

impl<P: StateLoss + Serialize> StateLoss for Guarded<P> {
    same_tag!();

    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        self.call(|plugin| plugin.pairs(models))
    }

    fn projects(&self) -> bool {
        self.ask(StateLoss::projects, false)
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        self.call(|plugin| plugin.loss(student, teacher))
    }
}

impl<P: Evaluator + Serialize> Evaluator for Guarded<P> {
    same_tag!();

    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let measured = self.call(|plugin| plugin.evaluate(subject))?;
        match measured.iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(measured),
            Some((key, value)) => {
                let message = format!("`{key}` came out as {value}: expected a finite number");
                Err(self.who.error(format!(
                    "{message}; the model's outputs may overflow, or its weights not be finite"
                )))
            }
        }
    }
}

impl<P: Corpus + Serialize> Corpus for Guarded<P> {
    same_tag!();

    fn extensions(&self) -> &'static [&'static str] {
        self.ask(Corpus::extensions, &[])
    }

    fn files(&self) -> Vec<PathBuf> {
        self.ask(Corpus::files, Vec::new())
    }

    fn documents(&self, seed: u64) -> Result<Documents<'_>> {
        self.guarded(|plugin| plugin.documents(seed))
    }

    fn documents_from(&self, seed: u64, n_items: u64) -> Result<Documents<'_>> {
        self.guarded(|plugin| plugin.documents_from(seed, n_items))
    }
}

impl<P: Corpus> Guarded<P> {
    fn guarded<'a>(
        &'a self,
        read: impl FnOnce(&'a P) -> Result<Documents<'a>>,
    ) -> Result<Documents<'a>> {
        self.call(|_| Ok(()))?;
        let documents = self.who.run(|| read(self.plugin.get()?).map(Held::new))?;
        Ok(Box::new(GuardedDocuments {
            who: self.who,
            documents,
        }))
    }
}

struct GuardedDocuments<'a> {
    who: Who,
    documents: Held<Documents<'a>>,
}

impl Iterator for GuardedDocuments<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        self.who
            .run(|| self.documents.get_mut()?.next().transpose())
            .transpose()
    }
}
