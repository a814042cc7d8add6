//! One lookup for all plugins: descriptors in, built plugins out.
//!
//! Descriptors are fed by `inventory` from linked crates. Nothing looks a plugin up in any other
//! way, so that an unknown tag, a stray parameter or two plugins of one name are answered alike
//! everywhere.

mod descriptor;
mod guard;
mod handshake;
mod models;

use std::sync::Arc;

pub use descriptor::{Build, Contract, Descriptor, Kind};
pub use guard::{Guarded, Who};
// For `plugin!`.
pub use crate::contract::PluginSpec;
#[doc(hidden)]
pub use guard::{inlined, parsed, shielded};
pub use handshake::{Handshake, Opening, PluginTable};

use serde_json::Value;

use crate::checkpoint::Config;
use crate::contract::{Architecture, Corpus};
use crate::error::{Error, Result};

/// How to, for a person whose model is of none.
const NEW_FAMILY: &str =
    "`minitron plugins new architecture DIR` writes one to start from (docs/src/first-plugin.md)";

/// All plugins that this process knows, sorted by kind and tag.
#[derive(Debug, Clone)]
pub struct Registry {
    descriptors: Vec<&'static Descriptor>,
    libraries: Vec<String>,
    /// Those of the descriptors that libraries brought.
    opened: Vec<&'static Descriptor>,
}

impl Registry {
    /// Collects the linked plugins.
    ///
    /// # Errors
    /// `Plugin` when two of one kind share a tag, naming both origins.
    pub fn linked() -> Result<Self> {
        Registry {
            descriptors: Vec::new(),
            libraries: Vec::new(),
            opened: Vec::new(),
        }
        .with(inventory::iter::<Descriptor>.into_iter().collect())
    }

    /// The same with the plugins of a library, whose content has this digest.
    ///
    /// # Errors
    /// As [`Registry::linked`].
    pub fn with_library(
        mut self,
        digest: String,
        descriptors: Vec<&'static Descriptor>,
    ) -> Result<Self> {
        self.libraries.push(digest);
        self.opened.extend(&descriptors);
        self.with(descriptors)
    }

    /// Digests of the libraries that were opened: results follow from them.
    pub fn libraries(&self) -> &[String] {
        &self.libraries
    }

    /// Whether a plugin came with a library.
    pub fn is_opened(&self, descriptor: &'static Descriptor) -> bool {
        self.opened
            .iter()
            .any(|opened| std::ptr::eq(*opened, descriptor))
    }

    fn with(mut self, more: Vec<&'static Descriptor>) -> Result<Self> {
        self.descriptors.extend(more);
        self.descriptors.sort_by_key(|d| (d.kind, d.tag));
        for pair in self.descriptors.windows(2) {
            if let [a, b] = pair
                && (a.kind, a.tag) == (b.kind, b.tag)
            {
                return Err(Error::Plugin {
                    tag: a.tag.to_owned(),
                    origin: b.origin.to_owned(),
                    message: format!(
                        "another {} plugin of that tag comes from {}; rename one",
                        a.kind, a.origin
                    ),
                });
            }
        }
        self.refuse_shared_losses()?;
        Ok(self)
    }

    /// `--loss TAG` names losses of both kinds.
    fn refuse_shared_losses(&self) -> Result<()> {
        for a in self.of_kind(Kind::Loss) {
            if let Some(b) = self.of_kind(Kind::StateLoss).find(|b| b.tag == a.tag) {
                return Err(Error::Plugin {
                    tag: a.tag.to_owned(),
                    origin: b.origin.to_owned(),
                    message: format!(
                        "a loss on logits of that tag comes from {}; rename one",
                        a.origin
                    ),
                });
            }
        }
        Ok(())
    }

    /// All descriptors.
    pub fn descriptors(&self) -> &[&'static Descriptor] {
        &self.descriptors
    }

    /// The descriptors of one kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &'static Descriptor> + '_ {
        self.descriptors
            .iter()
            .copied()
            .filter(move |d| d.kind == kind)
    }

    /// A descriptor by kind and tag.
    ///
    /// # Errors
    /// `Recipe` listing the known tags.
    pub fn find(&self, kind: Kind, tag: &str) -> Result<&'static Descriptor> {
        self.of_kind(kind).find(|d| d.tag == tag).ok_or_else(|| {
            Error::unknown(
                &format!("{kind} plugin"),
                tag,
                self.of_kind(kind).map(|d| d.tag),
            )
        })
    }

    /// Builds a plugin from its tag and parameters.
    ///
    /// # Errors
    /// `Recipe` for an unknown tag, a stray or missing parameter, or a value out of range.
    pub fn build<C: Contract + ?Sized>(&self, spec: &PluginSpec) -> Result<Box<C>> {
        let descriptor = self.find(C::KIND, &spec.tag)?;
        let mut object = spec.params.clone();
        object.insert("type".to_owned(), Value::from(spec.tag.as_str()));
        let build = C::builder(descriptor).ok_or_else(|| {
            Error::Internal(format!(
                "descriptor of `{}` is not of kind {}",
                spec.tag,
                C::KIND
            ))
        })?;
        build(Value::Object(object))
            .map_err(|e| Error::Recipe(format!("{} `{}`: {e}", C::KIND, spec.tag)))
    }

    /// The family of a config.
    ///
    /// # Errors
    /// `Checkpoint` listing the supported families.
    pub fn architecture_for(&self, config: &Config) -> Result<Arc<dyn Architecture>> {
        for descriptor in self.of_kind(Kind::Architecture) {
            let architecture = self.build::<dyn Architecture>(&PluginSpec::bare(descriptor.tag))?;
            if architecture.recognises(config) {
                return Ok(Arc::from(architecture));
            }
        }
        let known: Vec<&str> = self.of_kind(Kind::Architecture).map(|d| d.tag).collect();
        let model_type = config.model_type()?;
        let known = known.join(", ");
        let message = format!("model_type `{model_type}` is not supported; supported: {known}");
        Err(config.error(format!(
            "{message}. A plugin can add a family: {NEW_FAMILY}"
        )))
    }

    /// The corpus that reads a file, by its ending; of `params`, it gets those that it has.
    ///
    /// # Errors
    /// `Recipe` listing the known endings.
    pub fn corpus_for(
        &self,
        path: &std::path::Path,
        params: &[(&'static str, String)],
    ) -> Result<Box<dyn Corpus>> {
        let name = path.to_string_lossy();
        // On disks of other systems, names are in upper case.
        let lower = name.to_lowercase();
        let mut known: Vec<&str> = Vec::new();
        for descriptor in self.of_kind(Kind::Corpus) {
            let mut spec = PluginSpec::bare(descriptor.tag).with("path", name.as_ref());
            let example = (descriptor.example)();
            if example.get("path").is_none() {
                continue;
            }
            for (key, value) in params.iter().filter(|(key, _)| example.get(key).is_some()) {
                spec = spec.with(key, value.as_str());
            }
            let corpus = self.build::<dyn Corpus>(&spec)?;
            if corpus
                .extensions()
                .iter()
                .any(|ext| lower.ends_with(&format!(".{ext}")))
            {
                return Ok(corpus);
            }
            known.extend(corpus.extensions());
        }
        Err(Error::Recipe(format!(
            "`{name}`: no corpus reads such files; known endings: .{}",
            known.join(", .")
        )))
    }
}
