//! The modules of a sentence encoder: what sentence-transformers puts behind a transformer, each in
//! a folder of its own.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

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
        Config::load_optional(&path)?.ok_or_else(|| {
            let message = format!(
                "no such file, but {MODULES} names {}; fetch or copy the model whole",
                self.name()
            );
            Error::checkpoint(&path, message)
        })
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
    let text = read_text(&path).at_path(&path)?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::checkpoint(&path, format!("not valid JSON: {e}")))?;
    let Some(list) = value.as_array() else {
        let message = "expected a list of modules with `type` and `path`";
        return Err(Error::checkpoint(&path, message));
    };
    let mut found = Vec::with_capacity(list.len());
    for entry in list {
        let module = Module::read(entry).map_err(|message| Error::checkpoint(&path, message))?;
        refuse_link_outside(model_dir, &model_dir.join(&module.folder))?;
        found.push(module);
    }
    Ok(Some(found))
}

impl Module {
    /// From its entry of `modules.json`; the error says what is wrong with that.
    fn read(entry: &Value) -> Result<Self, String> {
        let class = entry.get("type").and_then(Value::as_str);
        let folder = entry.get("path").and_then(Value::as_str);
        let (Some(class), Some(folder)) = (class, folder) else {
            return Err(format!(
                "expected a module with `type` and `path`, got {entry}"
            ));
        };
        let module = Module {
            kind: class.rsplit('.').next().unwrap_or(class).to_owned(),
            folder: PathBuf::from(folder),
        };
        let mut parts = module.folder.components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!(
                "`path`: expected a folder inside the model's, got `{folder}`"
            ));
        }
        if module.is_transformer() && !folder.is_empty() {
            return Err(format!(
                "the transformer lies in `{folder}`; move its files beside {MODULES}, and set its \
                 path to \"\""
            ));
        }
        Ok(module)
    }

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
        let (matrices, vectors) = (of_rank(&tensors, 2), of_rank(&tensors, 1));
        let is_dense = vectors.len() < 2 && matrices.len() + vectors.len() == names.len();
        let ([weight], true) = (matrices.as_slice(), is_dense) else {
            let message = format!(
                "expected one matrix and at most one vector, got {}",
                names.join(", ")
            );
            return Err(Error::checkpoint(dir.join(SINGLE), message));
        };
        let (weight, bias) = (weight.clone(), vectors.first().cloned());
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

/// Names of the tensors of so many sides.
fn of_rank(tensors: &Reader, n_sides: usize) -> Vec<String> {
    let mut names = tensors.names();
    names.retain(|name| {
        let info = tensors.info(name);
        info.is_some_and(|info| info.shape.len() == n_sides)
    });
    names
}
