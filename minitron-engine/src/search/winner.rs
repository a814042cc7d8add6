//! The best candidate of a search as a model folder.

use std::path::Path;

use serde_json::json;

use super::field::Field;
use super::record::{Entry, SearchRecord};
use crate::jobs::card::{Before, Card, Fact, facts};
use crate::jobs::prune::errors::with_errors;
use crate::jobs::prune::{report_of, write_plan};
use crate::jobs::written::Written;
use crate::train::Trained;
use minitron_core::checkpoint::WriteOptions;
use minitron_core::error::{Error, Result};
use minitron_core::output::OutputDir;
use minitron_core::prune::ModuleChanges;

impl Field<'_> {
    /// The winner as a model folder with its plan.
    pub fn write(&self, idx: usize, record: &SearchRecord, target: &Path) -> Result<()> {
        let models = self.load(&[idx], record, true)?;
        let until = record.rungs.last().map_or(self.n_steps, |rung| rung.steps);
        let (outcome, trained) = self.run(&[idx], record, &models, until)?.single()?;
        if outcome.n_steps < until {
            return Err(Error::Internal(format!(
                "the winner learned {} of {until} steps",
                outcome.n_steps
            )));
        }
        let editor = self.editor(&record.candidates[idx])?;
        let folder = &self.teaching.folder;
        let report = report_of(&folder.spec, &editor);
        let output = OutputDir::create(target, true)?;
        let Trained { student, .. } = trained;
        let (model, _) = models
            .first()
            .ok_or_else(|| Error::Internal("a winner without a model".into()))?;
        let dir = &folder.checkpoint.dir;
        let written = Written {
            config: editor.config(),
            spec: editor.spec(),
            tensors: &model.to_source(&student)?,
            from: dir,
            modules: &ModuleChanges::new(dir, &folder.spec, editor.plan(), editor.hidden_basis())?,
            card: &Card::new(
                "search",
                Some(&self.teaching.name),
                dir,
                &folder.spec,
                self.facts(),
            )?,
            before: Some(&Before::of(&folder.spec)),
            measured: &measured(&record.candidates[idx]),
            options: WriteOptions::default(),
        };
        written.write(output.path())?;
        let explained = editor.plan().explain(&self.rankings, &folder.spec, None)?;
        let explained = with_errors(explained, &editor);
        write_plan(
            &output.path().join("plan.json"),
            (editor.plan(), &self.source),
            &explained,
            &report,
        )?;
        output.commit()
    }

    /// What the winner's card says of the search.
    fn facts(&self) -> Vec<Fact> {
        const TOLD: &str = "params memory square grid size free filter candidates rungs keep_share \
                            reconstruct losses data tokens seq_len batch_size lr seed";
        let mut options = serde_json::to_value(self.options).unwrap_or_default();
        options["losses"] = json!(self.losses);
        options["seed"] = json!(self.context.seed);
        facts(&options, TOLD)
    }
}

/// Held-out losses of a candidate before and after its training.
fn measured(entry: &Entry) -> Vec<Fact> {
    let before = entry.zero_shot.as_ref().and_then(|found| found.loss);
    let losses = [
        ("held-out loss before training", before),
        ("held-out loss", entry.loss),
    ];
    losses
        .into_iter()
        .filter_map(|(name, loss)| Some((name.to_owned(), format!("{:.4}", loss?))))
        .collect()
}
