//! The modules of a sentence encoder at a student's width: what pooling announces, and the columns
//! of the first Dense.

use std::fs;
use std::path::{Path, PathBuf};

use super::view::PrunedView;
use crate::checkpoint::{Config, DenseFile, Module, modules, write_tensors};
use crate::error::{Error, IoContext, Result};
use crate::plan::Plan;
use crate::spec::{At, DEPTH, HIDDEN, ModelSpec, Param, ParamKind, Part, Role, Side, fixed};

/// Modules that do not depend on any width.
const OF_ANY_WIDTH: [&str; 3] = ["Normalize", "Dropout", "SpladePooling"];
/// Looks at the states of all layers.
const OF_EVERY_LAYER: &str = "WeightedLayerPooling";
/// Where a Pooling states the width: as written up to sentence-transformers 5, and from 6 on.
const WIDTHS: [&str; 2] = ["word_embedding_dimension", "embedding_dimension"];

/// What changes in the folders of a sentence encoder's modules; nothing where it is none.
#[derive(Debug, Default)]
pub struct ModuleChanges {
    configs: Vec<(PathBuf, Config)>,
    dense: Option<DenseChange>,
}

/// The Dense that reads the pooled states.
#[derive(Debug)]
struct DenseChange {
    folder: PathBuf,
    file: DenseFile,
    /// Describes the file's tensors by the model's dims.
    spec: ModelSpec,
    plan: Plan,
}

impl ModuleChanges {
    /// Works out what a plan changes in a model folder's modules; reads no weight. `basis` says who
    /// turned the residual stream.
    ///
    /// # Errors
    /// `Checkpoint` for modules that contradict themselves; `Plan` for a module that channels or
    /// layers cannot be taken from.
    pub fn new(
        model_dir: &Path,
        spec: &ModelSpec,
        plan: &Plan,
        basis: Option<&str>,
    ) -> Result<Self> {
        let mut changes = ModuleChanges::default();
        let n_hidden = n_kept(HIDDEN, spec, plan);
        let is_narrower = n_hidden < spec.size(HIDDEN);
        let is_shallower = n_kept(DEPTH, spec, plan) < spec.n_layers();
        for module in modules(model_dir)?
            .unwrap_or_default()
            .iter()
            .filter(|module| !module.is_transformer())
        {
            match module.kind.as_str() {
                kind if OF_ANY_WIDTH.contains(&kind) => {}
                "Pooling" => changes.pooling(module, module.config(model_dir)?, n_hidden),
                "Dense" => {
                    let config = module.config(model_dir)?;
                    if is_narrower {
                        changes.dense(model_dir, module, config, (spec, plan, basis))?;
                    }
                    // What follows has the width of its output.
                    return Ok(changes);
                }
                OF_EVERY_LAYER if is_shallower => {
                    return Err(cannot(module, "it weighs every layer of the source"));
                }
                _ if !is_narrower => {}
                _ => {
                    return Err(cannot(
                        module,
                        "nothing is known of how it follows the model's channels",
                    ));
                }
            }
        }
        Ok(changes)
    }

    fn pooling(&mut self, module: &Module, mut config: Config, n_hidden: usize) {
        let stated: Vec<&str> = WIDTHS
            .into_iter()
            .filter(|key| config.get(key).is_some())
            .collect();
        if stated
            .iter()
            .any(|key| config.get(key) != Some(&n_hidden.into()))
        {
            stated.iter().for_each(|key| config.set(key, n_hidden));
            self.configs.push((module.folder.clone(), config));
        }
    }

    fn dense(
        &mut self,
        model_dir: &Path,
        module: &Module,
        mut config: Config,
        (spec, plan, basis): (&ModelSpec, &Plan, Option<&str>),
    ) -> Result<()> {
        if let Some(tag) = basis {
            return Err(cannot(
                module,
                &format!("`{tag}` turns the channels that it reads; leave that reconstruction out"),
            ));
        }
        if config.flag_or("use_residual", false)? {
            return Err(cannot(module, "it adds its own input to its output"));
        }
        let file = DenseFile::open(model_dir, module, &config)?;
        let hidden = spec.size(HIDDEN);
        // Several ways of pooling stand side by side, each as wide as the model.
        let n_pooled = file.n_in / hidden.max(1);
        if n_pooled == 0 || file.n_in != n_pooled * hidden {
            let message = format!(
                "`in_features`: expected {hidden} or a multiple, the model's width, got {}",
                file.n_in
            );
            return Err(config.error(message));
        }
        let mut described = spec.clone();
        described.params = dense_params(&file, n_pooled);
        described.config = config.clone();
        described.check(&file.tensors)?;
        config.set("in_features", n_pooled * n_kept(HIDDEN, spec, plan));
        self.configs.push((module.folder.clone(), config));
        self.dense = Some(DenseChange {
            folder: module.folder.clone(),
            file,
            spec: described,
            plan: plan.clone(),
        });
        Ok(())
    }

    /// Puts the changes into a folder that holds the modules as they were.
    pub fn write(&self, to: &Path) -> Result<()> {
        for (folder, config) in &self.configs {
            config.save(&to.join(folder).join("config.json"))?;
        }
        if let Some(dense) = &self.dense {
            let path = to.join(&dense.folder).join("model.safetensors");
            // The copy may be read-only, as its source was.
            fs::remove_file(&path).at_path(&path)?;
            write_tensors(
                &path,
                &PrunedView::new(&dense.file.tensors, &dense.spec, &dense.plan)?,
            )?;
        }
        Ok(())
    }
}

fn n_kept(name: &str, spec: &ModelSpec, plan: &Plan) -> usize {
    plan.kept.get(name).map_or(spec.size(name), Vec::len)
}

/// The tensors of a Dense that reads so many pooled states side by side.
fn dense_params(file: &DenseFile, n_pooled: usize) -> Vec<Param> {
    let channel = Part::Units {
        dim: HIDDEN.to_owned(),
        block: 1,
    };
    let sides = vec![fixed(file.n_out), Side(vec![channel; n_pooled])];
    let mut params = vec![carried(&file.weight, ParamKind::Weight, sides)];
    if let Some(name) = &file.bias {
        params.push(carried(name, ParamKind::Bias, vec![fixed(file.n_out)]));
    }
    params
}

fn carried(name: &str, kind: ParamKind, sides: Vec<Side>) -> Param {
    Param {
        template: name.to_owned(),
        at: At::Model,
        role: Role::CARRIED,
        kind,
        unit_of: None,
        sides,
        transposed: false,
        aliases: Vec::new(),
    }
}

fn cannot(module: &Module, why: &str) -> Error {
    Error::Plan(format!(
        "the sentence encoder's module {} cannot be pruned: {why}; keep hidden and layers whole, \
         or take it out of modules.json",
        module.name()
    ))
}
