//! Whether scores, plans and records belong to the model at hand, and what models and stages are
//! called.

use std::path::{Component, Path};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::context::Context;
use minitron_core::checkpoint::{Identity, weights_digest};
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::spec::ModelFolder;

/// The identity of a model's folder.
pub(crate) fn identity_of(folder: &ModelFolder) -> Result<Identity> {
    let tensors = folder.spec.params.iter();
    let tensors = tensors.map(|tensor| (tensor.layer(), tensor.name()));
    let dir = &folder.checkpoint.dir;
    let tokenizer = dir.join("tokenizer.json");
    Ok(Identity {
        model: name_of(dir),
        weights: weights_digest(&folder.checkpoint.tensors, tensors)?,
        tokenizer: if tokenizer.is_file() {
            Some(digest::of_file(&tokenizer)?)
        } else {
            None
        },
    })
}

/// A model as messages and files name it: `org/name` where it lies in the hub's cache, else its
/// folder's last name, since the rest is this machine's.
pub(crate) fn name_of(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    for part in dir.components().rev() {
        let name = part.as_os_str().to_string_lossy();
        if let Some(cached) = name.strip_prefix("models--") {
            return cached.replace("--", "/");
        }
    }
    let last = dir.components().next_back();
    last.map_or(String::new(), |part| {
        part.as_os_str().to_string_lossy().into_owned()
    })
}

/// Something that belongs to a model.
pub(crate) struct Artefact<'a> {
    /// `scores` or `a plan`.
    pub what: &'static str,
    /// Its file.
    pub path: &'a Path,
    /// Whose it says it is.
    pub of: Option<&'a Identity>,
}

impl Artefact<'_> {
    /// Refuses another model's; with `any_model`, says so instead. One that does not name its model
    /// is taken, and that is said.
    ///
    /// # Errors
    /// `Recipe` with both models by name.
    pub fn check(&self, context: &Context, own: &Identity, any_model: bool) -> Result<()> {
        let Artefact { what, path, of } = self;
        let path = path.display();
        let Some(of) = of else {
            let message = format!(
                "{path}: does not say which model it is of, as files of earlier versions; it is \
                 taken to be of {own}"
            );
            context.progress.warn(&message);
            return Ok(());
        };
        if !of.has_weights_of(own) {
            let message = format!("{path}: {what} of {of}, and the model is {own}");
            if !any_model {
                return Err(Error::Recipe(format!(
                    "{message}; make it of this model, or take it anyway with --any-model \
                     (any_model in recipes)"
                )));
            }
            context.progress.warn(&format!("{message}; taken anyway"));
        } else if of.has_other_tokenizer(own) {
            context.progress.warn(&format!(
                "{path}: {what} made with another tokenizer.json than {own} has now"
            ));
        }
        Ok(())
    }
}

/// The name of a stage or candidate is that of its folder, whoever wrote the record.
pub(crate) fn plain_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let mut parts = Path::new(&name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(name),
        _ => Err(D::Error::custom(format!(
            "expected a plain name of a folder, got `{name}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_without_the_place_it_lies_at() {
        let dir = tempfile::tempdir().unwrap();
        let named = |place: &str| {
            let path = dir.path().join(place);
            std::fs::create_dir_all(&path).unwrap();
            name_of(&path)
        };
        assert_eq!(named("base"), "base");
        assert_eq!(named("models--org--small/snapshots/0123"), "org/small");
    }
}
