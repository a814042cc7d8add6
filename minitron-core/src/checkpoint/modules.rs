//! The modules of a sentence encoder: what sentence-transformers puts behind a transformer, each in
//! a folder of its own.

use std::path::{Component, Path, PathBuf};

use super::config::Config;
use super::links::refuse_link_outside;
use super::reader::Reader;
use super::source::TensorSource;
use super::weight_files::SINGLE;
use crate::error::{Error, IoContext, Result};
use crate::files::read_text;

/// Names the modules in their order.
pub(super) const MODULES: &str = "modules.json";

/// One line of `modules.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The class without its package: `Transformer`, `Pooling`, `Dense`, `Normalize`.
    pub kind: String,
    /// Its folder inside the model's; empty for what lies in the model's folder itself.
    pub folder: PathBuf,
}

impl Module {
    /// How errors and people call it.
    pub fn name(&self) -> String {
        format!("`{}` ({})", self.folder.display(), self.kind)
    }

    /// Its settings.
    ///
    /// # Errors
    /// `Checkpoint` where `modules.json` names a folder that has none.
    pub fn config(&self, model_dir: &Path) -> Result<Config> {
        let path = model_dir.join(&self.folder).join("config.json");
        refuse_link_outside(model_dir, &path)?;
        let missing = || {
            let message = format!(
                "no such file, but {MODULES} names {}; fetch or copy the model whole",
                self.name()
            );
            Error::checkpoint(&path, message)
        };
        Config::load_optional(&path)?.ok_or_else(missing)
    }
}

/// The modules of a model folder in their order; none where it is no sentence encoder.
///
/// # Errors
/// `Checkpoint` where `modules.json` is malformed, names a place outside the folder or a
/// transformer in a folder below it.
pub fn modules(model_dir: &Path) -> Result<Option<Vec<Module>>> {
    let path = model_dir.join(MODULES);
    if !path.try_exists().at_path(&path)? {
        return Ok(None);
    }
    refuse_link_outside(model_dir, &path)?;
    let wrong = |message: String| Error::checkpoint(&path, message);
    let text = read_text(&path).at_path(&path)?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
    let list = value
        .as_array()
        .ok_or_else(|| wrong("expected a list of modules with `type` and `path`".into()))?;
    let read = |entry: &serde_json::Value| {
        let word = |key: &str| entry.get(key).and_then(serde_json::Value::as_str);
        let (Some(class), Some(folder)) = (word("type"), word("path")) else {
            return Err(wrong(format!(
                "expected a module with `type` and `path`, got {entry}"
            )));
        };
        let kind = class.rsplit('.').next().unwrap_or(class).to_owned();
        let module = Module {
            kind,
            folder: PathBuf::from(folder),
        };
        if !module
            .folder
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(wrong(format!(
                "`path`: expected a folder inside the model's, got `{folder}`"
            )));
        }
        if module.is_transformer() && !folder.is_empty() {
            let message = format!(
                "the transformer lies in `{folder}`; move its files beside {MODULES}, and set its \
                 path to \"\""
            );
            return Err(wrong(message));
        }
        refuse_link_outside(model_dir, &model_dir.join(&module.folder))?;
        Ok(module)
    };
    list.iter().map(read).collect::<Result<_>>().map(Some)
}

impl Module {
    /// Whether it is the transformer, which minitron itself reads and writes.
    pub fn is_transformer(&self) -> bool {
        self.kind.ends_with("Transformer")
    }
}

/// What a Dense module's file holds, found by shape: a matrix [out | in], and a vector \[out\]
/// where it has a bias.
#[derive(Debug)]
pub struct DenseFile {
    /// The file.
    pub tensors: Reader,
    /// Name of the matrix.
    pub weight: String,
    /// Name of the vector.
    pub bias: Option<String>,
    /// Values that come out.
    pub n_out: usize,
    /// Values that go in.
    pub n_in: usize,
}

impl DenseFile {
    /// Opens the file of a module, and compares it with its settings.
    ///
    /// # Errors
    /// `Checkpoint` for another format than safetensors, other tensors, or sizes that its
    /// `config.json` does not state.
    pub fn open(model_dir: &Path, module: &Module, config: &Config) -> Result<Self> {
        let dir = model_dir.join(&module.folder);
        if !dir.join(SINGLE).is_file() {
            let message = format!(
                "expected {SINGLE} of module {}; load the model with sentence-transformers and \
                 save it again, which writes one",
                module.name()
            );
            return Err(Error::checkpoint(&dir, message));
        }
        refuse_link_outside(model_dir, &dir.join(SINGLE))?;
        let mut tensors = Reader::open(&dir)?;
        let names = tensors.names();
        let of_sides = |n: usize| -> Vec<&String> {
            names
                .iter()
                .filter(|name| tensors.info(name).is_some_and(|info| info.shape.len() == n))
                .collect()
        };
        let (matrices, vectors) = (of_sides(2), of_sides(1));
        let ([weight], true, true) = (
            matrices.as_slice(),
            vectors.len() < 2,
            matrices.len() + vectors.len() == names.len(),
        ) else {
            let message = format!(
                "expected one matrix and at most one vector, got {}",
                names.join(", ")
            );
            return Err(Error::checkpoint(dir.join(SINGLE), message));
        };
        let (weight, bias) = (
            (*weight).clone(),
            vectors.first().map(|name| (*name).clone()),
        );
        let shape = tensors
            .info(&weight)
            .map(|info| info.shape)
            .unwrap_or_default();
        let stated = [config.size("out_features")?, config.size("in_features")?];
        if shape != stated {
            return Err(config.error(format!(
                "states {stated:?} (out, in), but the matrix has {shape:?}"
            )));
        }
        tensors.expect_weights(names);
        let [n_out, n_in] = stated;
        Ok(DenseFile {
            tensors,
            weight,
            bias,
            n_out,
            n_in,
        })
    }
}
