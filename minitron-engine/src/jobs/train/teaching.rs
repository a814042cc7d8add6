//! Where a distillation's teacher is: in memory, on disk layer by layer, or remembered.

use std::path::Path;

use super::student::StudentFolder;
use super::teacher_source::{TeacherOptions, TeacherSource};
use crate::jobs::card::Card;
use crate::jobs::compute_type::ComputeType;
use crate::jobs::context::Context;
use crate::jobs::identity::name_of;
use crate::train::{
    CacheHeader, CachedTeacher, InMemoryTeacher, MasterWeights, Objective, ShardedLayers,
    StreamedTeacher, Teacher, TeacherCache, Term,
};
use minitron_core::contract::TeacherNeed;
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::output::OutputDir;
use minitron_core::plan::Plan;
use minitron_core::prune::ModuleChanges;
use minitron_core::spec::ModelFolder;

/// More would take longer than the whole distribution of a usual vocabulary.
const MOST_DRAWS: usize = 1 << 16;

impl TeacherSource {
    /// Refuses what the options cannot do, before any work.
    ///
    /// # Errors
    /// `Recipe` naming the loss that a cache cannot serve, or options that do not go together.
    fn check(&self, objective: &Objective) -> Result<()> {
        let is_stored = self.options.stream_teacher || self.options.teacher_cache.is_some();
        if let Some(rate) = self.options.correct_teacher {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(Error::Recipe(format!(
                    "correct_teacher: expected a positive share, got {rate}"
                )));
            }
            if is_stored || !objective.needs_teacher() {
                let message = "correct_teacher: a teacher that learns is held in memory and says \
                               something else every time; leave out stream_teacher and \
                               teacher_cache, and take a loss that asks it";
                return Err(Error::Recipe(message.into()));
            }
        }
        if is_stored && !objective.needs_teacher() {
            let message = "stream_teacher, teacher_cache: no loss asks the teacher; leave them \
                           out, or take one that does";
            return Err(Error::Recipe(message.into()));
        }
        let Some(dir) = &self.options.teacher_cache else {
            return Ok(());
        };
        if self.options.cache_top_k == 0 {
            return Err(Error::Recipe("cache_top_k: expected at least 1".into()));
        }
        if let Some(n @ (0 | MOST_DRAWS..)) = self.options.cache_samples {
            return Err(Error::Recipe(format!(
                "cache_samples: expected 1 to {} draws a token, got {n}",
                MOST_DRAWS - 1
            )));
        }
        OutputDir::refuse_inputs(dir, [self.folder.checkpoint.dir.as_path()])?;
        if let Some(term) = objective.states.first() {
            return Err(Error::Recipe(format!(
                "teacher_cache: `{}` compares states, the cache holds probabilities; leave one of \
                 the two out",
                term.label
            )));
        }
        for term in &objective.terms {
            self.check_served(term)?;
        }
        Ok(())
    }

    /// Refuses a loss that needs more than the cache holds.
    fn check_served(&self, term: &Term) -> Result<()> {
        let (held, vocab) = (self.options.cache_top_k, self.vocab);
        let (label, is_linear) = (&term.label, term.loss.is_linear_in_teacher());
        match term.loss.teacher() {
            TeacherNeed::Distribution { .. } if self.options.cache_samples.is_some() => {
                match is_linear {
                    true => Ok(()),
                    false => Err(Error::Recipe(format!(
                        "cache_samples: `{label}` is not linear in the teacher's distribution, so \
                         that draws would bias it; leave cache_samples out, or take another loss"
                    ))),
                }
            }
            TeacherNeed::Logits => Err(Error::Recipe(format!(
                "teacher_cache: `{label}` compares logits as they are, the cache holds \
                 probabilities; leave one of the two out"
            ))),
            TeacherNeed::Distribution { n_tokens } if n_tokens.min(vocab) > held => {
                Err(Error::Recipe(format!(
                    "teacher_cache: `{label}` needs the teacher's {} likeliest tokens one by one, \
                     the cache holds {held}; raise cache_top_k",
                    n_tokens.min(vocab)
                )))
            }
            _ => Ok(()),
        }
    }

    /// The teacher, loaded no earlier than it has to be.
    pub fn teacher<'a>(
        &'a self,
        context: &'a Context,
        objective: &Objective,
        corrected: Option<&'a Transformer>,
    ) -> Result<Option<Box<dyn Teacher + 'a>>> {
        if let Some(model) = corrected {
            return Ok(Some(Box::new(InMemoryTeacher(model))));
        }
        if !objective.needs_teacher() {
            return Ok(None);
        }
        let Some(dir) = &self.options.teacher_cache else {
            return self.live(context).map(Some);
        };
        let ranks = context.ranks;
        // One of them begins it.
        ranks.first(|| self.begin_cache(context))?;
        let cache = TeacherCache::open(dir, self.cache_header(context), ranks.rank())?;
        let n_bytes = cache.header().bytes_per_token();
        context.progress.note(&format!(
            "teacher cache: {n_bytes} bytes per token, {} windows stored",
            cache.len()
        ));
        let loader = Box::new(move || self.live(context));
        Ok(Some(Box::new(CachedTeacher::new(
            &self.folder.spec,
            self.load_options(context).kind,
            cache,
            loader,
            context.progress,
        ))))
    }

    /// Begins the cache, where there is to be one and is none.
    pub fn begin_cache(&self, context: &Context) -> Result<()> {
        match &self.options.teacher_cache {
            Some(dir) => TeacherCache::open(dir, self.cache_header(context), 0).map(drop),
            None => Ok(()),
        }
    }

    fn cache_header(&self, context: &Context) -> CacheHeader {
        let header = CacheHeader::new(
            self.digest.clone(),
            format!("{:?}", self.load_options(context).kind).to_lowercase(),
            self.vocab,
            self.options.cache_top_k,
            self.options.cache_type,
        )
        .named(name_of(&self.folder.checkpoint.dir));
        match self.options.cache_samples {
            Some(n) => header.drawing(n, context.seed),
            None => header,
        }
    }

    /// The teacher as one that learns, where it is to be corrected.
    ///
    /// # Errors
    /// As [`TeacherSource::check`].
    pub fn corrected(
        &self,
        context: &Context,
        objective: &Objective,
    ) -> Result<Option<Transformer>> {
        self.check(objective)?;
        let ModelFolder {
            checkpoint, spec, ..
        } = &self.folder;
        let options = LoadOptions {
            trainable: true,
            ..self.load_options(context)
        };
        match self.options.correct_teacher {
            Some(_) => Transformer::load(&checkpoint.tensors, spec, options).map(Some),
            None => Ok(None),
        }
    }

    /// A corrected teacher as a model folder.
    pub fn write(
        &self,
        model: &Transformer,
        masters: &MasterWeights,
        card: &Card,
        target: &Path,
    ) -> Result<()> {
        let ModelFolder {
            checkpoint, spec, ..
        } = &self.folder;
        let card = card.of_another(&self.name, &checkpoint.dir);
        let folder = StudentFolder {
            modules: &ModuleChanges::new(&checkpoint.dir, spec, &Plan::default(), None)?,
            card: &card,
            config: &checkpoint.config,
            dir: &checkpoint.dir,
            tokenizer_dir: None,
            is_trained: true,
            student: model,
        };
        folder.write(masters, target, &[])
    }

    /// What of the cache decides the result, for telling runs apart.
    pub fn cached_as(&self) -> Option<String> {
        let TeacherOptions {
            cache_top_k,
            cache_type,
            cache_samples,
            ..
        } = self.options;
        let cache = self.options.teacher_cache.as_ref();
        cache.map(|_| match cache_samples {
            Some(n) => format!("{n} draws"),
            None => format!("{cache_top_k} {cache_type:?}"),
        })
    }

    fn load_options(&self, context: &Context) -> LoadOptions {
        let own = self.options.teacher_dtype;
        let kind = own.map_or(context.kind, ComputeType::kind);
        LoadOptions {
            kind,
            ..context.load_options()
        }
    }

    /// As it says things itself, past any cache.
    pub fn live<'a>(&'a self, context: &Context) -> Result<Box<dyn Teacher + 'a>> {
        let ModelFolder {
            checkpoint, spec, ..
        } = &self.folder;
        let (options, tensors) = (self.load_options(context), &checkpoint.tensors);
        if self.options.stream_teacher {
            return Ok(Box::new(StreamedTeacher::new(tensors, spec, options)));
        }
        // What a cache lacks, one rank asks for without the others.
        let is_cached = self.options.teacher_cache.is_some();
        let model = match self.is_sharded && !is_cached {
            true => ShardedLayers::load(tensors, spec, options, context.ranks)?.0,
            false => Transformer::load(tensors, spec, options)?,
        };
        Ok(Box::new(InMemoryTeacher(model)))
    }
}
