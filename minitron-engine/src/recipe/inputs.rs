//! What a stage names, put in its real place and remembered by content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::StageOptions;
use super::run_dir::RunDir;
use crate::data::{DataSpec, TextOptions};
use crate::jobs::blocks::blocks_path;
use crate::jobs::context::Context;
use crate::jobs::score::scores_path;
use crate::jobs::{
    EvalOptions, PruneOptions, ReconstructOptions, TaskSource, TeacherOptions, TrainingOptions,
};
use minitron_core::checkpoint::companions;
use minitron_core::digest;
use minitron_core::error::Result;
use minitron_core::registry::PluginSpec;

/// From what is given to the file that a job wrote.
type WrittenFile = fn(&str) -> Result<PathBuf>;

/// Puts real places for what a stage names, and remembers a digest of each.
pub(crate) struct Inputs<'a, 'c> {
    pub context: &'a Context<'c>,
    pub recipe_dir: PathBuf,
    pub run_dir: &'a RunDir,
    /// Stages that may be named.
    pub earlier: &'a [&'a str],
    /// Files hashed for other stages.
    pub known: &'a mut BTreeMap<PathBuf, String>,
    /// What the result follows from besides the options, in the order of the options: files, and
    /// stages by their inputs.
    pub read: Vec<(Option<PathBuf>, String)>,
}

impl Inputs<'_, '_> {
    pub fn resolve(&mut self, options: &StageOptions) -> Result<StageOptions> {
        let mut options = options.clone();
        match &mut options {
            StageOptions::Score(o) => {
                self.model(&mut o.model)?;
                self.specs(&mut o.metrics)?;
                self.data(&mut o.data, &o.text)?;
            }
            StageOptions::Blocks(o) => {
                self.model(&mut o.model)?;
                self.written(&mut o.scores, scores_path)?;
                self.reconstruction(&mut o.reconstruction)?;
            }
            StageOptions::Prune(o) => self.of_prune(o)?,
            StageOptions::Train(o) => {
                if let Some(config) = &mut o.config {
                    *config = self.config(config)?;
                }
                if let Some(model) = &mut o.model {
                    self.model(model)?;
                }
                self.texts(&mut o.training)?;
            }
            StageOptions::Distill(o) => {
                self.place_cache(&mut o.teacher_options);
                self.model(&mut o.teacher)?;
                self.model(&mut o.student)?;
                self.texts(&mut o.training)?;
            }
            StageOptions::Eval(o) => self.of_eval(o)?,
            StageOptions::Search(o) => {
                self.model(&mut o.model)?;
                self.written(&mut o.scores, scores_path)?;
                if let Some(blocks) = &mut o.blocks {
                    self.written(blocks, blocks_path)?;
                }
                self.place_cache(&mut o.teacher_options);
                self.specs(&mut o.reconstruct)?;
                self.texts(&mut o.training)?;
            }
            StageOptions::Generate(o) => self.model(&mut o.model)?,
        }
        Ok(options)
    }

    fn of_prune(&mut self, options: &mut PruneOptions) -> Result<()> {
        self.model(&mut options.model)?;
        if let Some(scores) = &mut options.scores {
            self.written(scores, scores_path)?;
        }
        if let Some(plan) = &mut options.plan {
            *plan = self.recipe_dir.join(&*plan);
            self.file(plan)?;
        }
        let tables = [&mut options.blocks, &mut options.times];
        for table in tables.into_iter().flatten() {
            self.written(table, blocks_path)?;
        }
        self.specs(&mut options.metrics)?;
        self.data(&mut options.eval_data, &options.reconstruction.text)?;
        self.reconstruction(&mut options.reconstruction)
    }

    fn reconstruction(&mut self, options: &mut ReconstructOptions) -> Result<()> {
        self.specs(&mut options.reconstruct)?;
        self.data(&mut options.data, &options.text)
    }

    fn of_eval(&mut self, options: &mut EvalOptions) -> Result<()> {
        self.model(&mut options.model)?;
        if let Some(teacher) = &mut options.teacher {
            self.model(teacher)?;
        }
        self.specs(&mut options.evaluators)?;
        for task in &mut options.tasks {
            self.task(&mut task.what)?;
        }
        self.data(&mut options.data, &options.text)
    }

    /// A teacher's cache is a path from the recipe's folder.
    fn place_cache(&self, teacher_options: &mut TeacherOptions) {
        if let Some(dir) = &mut teacher_options.teacher_cache {
            *dir = self.recipe_dir.join(&*dir);
        }
    }

    /// An earlier stage's folder or one inside it (`search/winner`), remembered by what that stage
    /// was made from; else a path from the recipe's folder.
    fn place(&mut self, name: &str) -> (PathBuf, bool) {
        let stage = name.split('/').next().unwrap_or_default();
        let is_path = stage != name && self.recipe_dir.join(name).exists();
        let is_earlier = self.earlier.contains(&stage) && !is_path;
        match self.run_dir.find(stage).filter(|_| is_earlier) {
            Some(found) => {
                self.read.push((None, found.inputs.clone()));
                (self.run_dir.stage(name), true)
            }
            None => (self.recipe_dir.join(name), false),
        }
    }

    /// A file that a job wrote, given itself or as the stage's folder.
    fn written(&mut self, place: &mut String, file_of: WrittenFile) -> Result<()> {
        let (path, is_stage) = self.place(place);
        if !is_stage {
            self.file(&file_of(&path.to_string_lossy())?)?;
        }
        *place = path.display().to_string();
        Ok(())
    }

    fn model(&mut self, model: &mut String) -> Result<()> {
        let (place, is_stage) = self.place(model);
        if is_stage || place.is_dir() {
            *model = place.display().to_string();
        }
        if is_stage {
            return Ok(());
        }
        self.folder(&(self.context.resolve)(model)?)
    }

    /// Weights, config and tokenizer.
    fn folder(&mut self, dir: &Path) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return Ok(());
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths: Vec<PathBuf> = paths.filter(|path| is_weight_or_config(path)).collect();
        paths.sort();
        // What goes along into every output, too: a chat template, a tokenizer in other forms.
        for name in companions(dir)? {
            let path = dir.join(&name);
            if name.components().count() > 1 || !is_weight_or_config(&path) {
                paths.push(path);
            }
        }
        for path in paths {
            self.file(&path)?;
        }
        Ok(())
    }

    fn config(&mut self, config: &Path) -> Result<PathBuf> {
        let (place, is_stage) = self.place(&config.to_string_lossy());
        let file = if place.is_dir() {
            place.join("config.json")
        } else {
            place
        };
        self.file(&file)?;
        if !is_stage {
            // The tokenizer beside it decides as much.
            self.folder(&parent(&file))?;
        }
        Ok(file)
    }

    /// What a training reads and what it is evaluated on.
    fn texts(&mut self, training: &mut TrainingOptions) -> Result<()> {
        self.specs(&mut training.losses)?;
        self.data(&mut training.data, &training.text)?;
        self.data(&mut training.eval_data, &training.text)
    }

    fn data(&mut self, data: &mut [DataSpec], text: &TextOptions) -> Result<()> {
        let reading = text.reading(2, None, self.context.seed);
        for spec in data.iter_mut() {
            *spec = spec.relative_to(&self.recipe_dir, self.context.registry);
            for file in spec.corpus(self.context.registry, &reading)?.files() {
                self.digest(&file, digest::of_data_file)?;
            }
        }
        Ok(())
    }

    /// Files that plugins read.
    fn specs(&mut self, specs: &mut [PluginSpec]) -> Result<()> {
        for spec in specs {
            *spec = spec.clone().relative_to(&self.recipe_dir);
            for (_, path) in spec.paths() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn task(&mut self, task: &mut TaskSource) -> Result<()> {
        match task {
            TaskSource::File(path) => {
                *path = self.recipe_dir.join(&*path);
                self.file(path)
            }
            TaskSource::Evaluator(spec) => self.specs(std::slice::from_mut(spec)),
        }
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        self.digest(path, digest::of_file)
    }

    fn digest(&mut self, path: &Path, digest_of: impl Fn(&Path) -> Result<String>) -> Result<()> {
        let digest = match self.known.get(path) {
            Some(digest) => digest.clone(),
            None => digest_of(path)?,
        };
        self.known.insert(path.to_path_buf(), digest.clone());
        self.read.push((Some(path.to_path_buf()), digest));
        Ok(())
    }
}

fn is_weight_or_config(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && (name.ends_with(".safetensors") || name.ends_with(".json"))
}

pub(crate) fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}
