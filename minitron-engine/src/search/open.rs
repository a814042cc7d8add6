//! How a search begins: the candidates are found, all options checked, and the folder is started
//! or gone on in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::field::Field;
use super::halving::Halving;
use super::options::{Found, SearchOptions};
use super::prepare::{eval_windows, losses, reconstruction, refuse};
use super::record::{Entry, SearchRecord};
use crate::data::DataLoader;
use crate::jobs::blocks::blocks_path;
use crate::jobs::card::name_of;
use crate::jobs::context::Context;
use crate::jobs::identity::identity_of;
use crate::jobs::marks::{by_content, decide_nothing};
use crate::jobs::prune::planning::scores_of;
use crate::jobs::score::scores_path;
use crate::jobs::train::places::refuse_places;
use crate::jobs::train::teacher_source::TeacherSource;
use crate::ranks::Ranks;
use minitron_core::digest;
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::output::{OutputDir, remove_atomic};
use minitron_core::plan::Rankings;
use minitron_core::reconstruct::KeptUnits;
use minitron_core::registry::{PluginSpec, inlined};
use minitron_core::windows::Windows;

/// Evaluations in a candidate's whole training where none are asked for.
const EVALUATIONS: u64 = 20;

impl<'a> Field<'a> {
    /// Finds the candidates, checks all options, and starts the folder or goes on in it. Of several
    /// ranks the first does the latter; the others have the record before its first candidate.
    pub fn open(
        context: &'a Context<'a>,
        options: &'a SearchOptions,
        out: &'a Path,
        (resume, ranks): (bool, Ranks),
    ) -> Result<(Self, SearchRecord)> {
        ranks.first(|| match resume && out.join("search.json").is_file() {
            true => Ok(()),
            false => OutputDir::refuse_existing(out, context.force),
        })?;
        refuse(context, options)?;
        let found = options.survey(context)?;
        let (mut field, scores) = Field::read(context, options, out, &found)?;
        let loader = field.loader(&[])?;
        field.set_steps(&loader)?;
        field.check(found.candidates.len())?;
        let scores = digest::of_file(&scores)?;
        let mut record = field.record(&found, &loader, &scores)?;
        ranks.same("search", &json!({ "inputs": record.inputs }))?;
        ranks.first(|| {
            record = start(context, out, resume, record.clone())?;
            field.teaching.begin_cache(context)
        })?;
        Ok((field, record))
    }

    /// Reads the original, its scores and the texts; the steps are not known yet. With it, where
    /// the scores lie.
    fn read(
        context: &'a Context<'a>,
        options: &'a SearchOptions,
        out: &'a Path,
        found: &Found,
    ) -> Result<(Self, PathBuf)> {
        if options.training.length_stage.is_some() {
            return Err(Error::Recipe(
                "length_stage: candidates are ranked by windows of one length; leave it out, and \
                 give it to the distillation of the one that is chosen"
                    .into(),
            ));
        }
        let folder = context.open_as(&options.model, options.layers_apart)?;
        folder.spec.check_computable()?;
        let cache = options.teacher_options.teacher_cache.as_deref();
        refuse_places(context, &options.training, cache, out)?;
        let dir = folder.checkpoint.dir.as_path();
        OutputDir::refuse_inputs(out, [dir])?;
        let groups = context.groups(&context.axes(&options.axes)?, &folder.spec)?;
        let scores = scores_path(&options.scores)?;
        OutputDir::refuse_inputs(out, [scores.as_path()])?;
        let source = identity_of(&folder)?;
        let any_model = options.teacher_options.any_model;
        let ranked = scores_of(context, &scores, &source, any_model)?;
        let rankings = Rankings::new(&ranked, &groups, &options.by)?;
        let name = name_of(&options.model, dir);
        let tokenizer = Arc::new(context.reader(&folder, &options.training.text)?);
        let reconstruction = reconstruction(options);
        let reconstruct_windows = reconstruction.windows(context, &folder, false, Some(out))?;
        let eval_windows = eval_windows(context, options, &folder, &tokenizer)?;
        let field = Field {
            context,
            options,
            n_steps: 0,
            every: 1,
            tokens_per_step: 1,
            rankings,
            space: found.space.clone(),
            source,
            teaching: TeacherSource::new(name, folder, &options.teacher_options)?,
            losses: losses(context, options),
            tokenizer,
            reconstruction,
            reconstruct_windows,
            eval_windows,
            out,
        };
        Ok((field, scores))
    }

    /// How long a candidate learns that stays to the end, by what the text holds.
    fn set_steps(&mut self, loader: &DataLoader) -> Result<()> {
        let (training, width) = (&self.options.training, loader.mean_width());
        let settings = training.settings(self.context.seed);
        settings.check()?;
        self.n_steps = settings.schedule(width).n_steps;
        self.tokens_per_step = settings.tokens_per_step(width);
        let every = training.eval_every.unwrap_or(self.n_steps / EVALUATIONS);
        self.every = every.max(1);
        Ok(())
    }

    /// Refuses rungs that the steps cannot hold, and losses that do not exist or that the
    /// teacher's cache cannot serve.
    fn check(&self, n_candidates: usize) -> Result<()> {
        let n_screened = self.options.screen.unwrap_or(usize::MAX);
        let halving = Halving {
            n_rungs: self.options.rungs,
            keep: self.options.keep_share,
        };
        let n_screened = n_screened.clamp(1, n_candidates.max(1));
        halving.rungs(n_screened, self.n_steps, self.every)?;
        let of_source = self.objective(&self.teaching.folder.spec, &KeptUnits::default())?;
        self.teaching.corrected(self.context, &of_source).map(drop)
    }

    fn record(&self, found: &Found, loader: &DataLoader, scores: &str) -> Result<SearchRecord> {
        let how = serde_json::to_value(self.options).unwrap_or_default();
        let mut deciding = how.clone();
        if let Some(options) = deciding.as_object_mut() {
            let schema = inlined::<SearchOptions>();
            let nothing = [decide_nothing(&schema), by_content(&schema)].concat();
            options.retain(|key, _| !nothing.contains(key));
        }
        let blocks = self
            .options
            .blocks
            .as_deref()
            .map(blocks_path)
            .transpose()?;
        let blocks = blocks.as_deref().map(digest::of_file).transpose()?;
        let inputs = json!([
            env!("CARGO_PKG_VERSION"),
            deciding,
            [Some(scores), blocks.as_deref()],
            self.identity(loader, "")?,
            self.context.seed,
            self.reconstruct_windows.as_ref().map(Windows::digest),
            PluginSpec::digests(&self.options.reconstruct)?,
        ]);
        Ok(SearchRecord {
            format: 1,
            minitron: env!("CARGO_PKG_VERSION").to_owned(),
            inputs: digest::of_text(&inputs.to_string()),
            model: self.options.model.clone(),
            weights: self.source.weights.clone(),
            options: how,
            n_params_source: found.spec.n_params(),
            target: found.target.clone(),
            seed: self.context.seed,
            grid: Some(found.survey.clone()),
            candidates: self.entries(found),
            ..SearchRecord::default()
        })
    }

    /// The candidates by name, in the order they were found: `c01`.
    fn entries(&self, found: &Found) -> Vec<Entry> {
        let folder = &self.teaching.folder;
        let bytes_per_param = folder.n_bytes() as f64 / folder.spec.n_params().max(1) as f64;
        let width = found.candidates.len().to_string().len().max(2);
        let mut entries = Vec::with_capacity(found.candidates.len());
        for (idx, candidate) in found.candidates.iter().enumerate() {
            let (sizes, n_params) = (&candidate.sizes, candidate.n_params);
            let bytes = self
                .options
                .bytes_of(&found.spec, n_params, bytes_per_param, sizes);
            entries.push(Entry {
                name: format!("c{:0width$}", idx + 1),
                sizes: sizes.clone(),
                layers: candidate.layers.clone(),
                n_params,
                memory_bytes: bytes,
                imbalance: candidate.imbalance,
                ..Entry::default()
            });
        }
        entries
    }
}

/// Starts the folder, or goes on with what an earlier run of the same search left there.
fn start(context: &Context, out: &Path, resume: bool, fresh: SearchRecord) -> Result<SearchRecord> {
    let earlier = if resume {
        SearchRecord::load(out)?
    } else {
        None
    };
    if let Some(earlier) = earlier {
        if earlier.inputs == fresh.inputs {
            return Ok(earlier);
        }
        // A recipe's stage owns its folder.
        if !context.force {
            return Err(Error::Recipe(format!(
                "{}: holds a search {}; start over with --force",
                out.display(),
                what_differs(&earlier, &fresh)
            )));
        }
    }
    OutputDir::refuse_existing(out, context.force)?;
    remove_atomic(out)?;
    std::fs::create_dir_all(out).at_path(out)?;
    fresh.save(out)?;
    Ok(fresh)
}

fn what_differs(earlier: &SearchRecord, fresh: &SearchRecord) -> String {
    if !earlier.weights.is_empty() && earlier.weights != fresh.weights {
        format!("of another model (`{}`)", earlier.model)
    } else {
        "with other options".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_a_search_is_all_but_files_by_name_and_what_changes_no_result() {
        let schema = inlined::<SearchOptions>();
        let files = [
            "model",
            "scores",
            "blocks",
            "teacher_cache",
            "data",
            "eval_data",
        ];
        assert_eq!(by_content(&schema), files);
        assert!(decide_nothing(&schema).contains(&"max_memory".to_owned()));
    }
}
