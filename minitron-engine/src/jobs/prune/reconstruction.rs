//! The reconstructions of a pruned model, and the text they look at.

use std::path::{Path, PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::errors::in_json;
use crate::data::{DataSpec, TextOptions, WindowSampling, files_of};
use crate::jobs::context::{Context, at_least_1, seq_len_or_default};
use minitron_core::calibrate::{Calibration, World};
use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::output::OutputDir;
use minitron_core::plan::{Plan, Rankings};
use minitron_core::reconstruct::{ReconstructInputs, StudentEditor};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelFolder;
use minitron_core::windows::Windows;

/// Options of `prune` that reconstructions share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct ReconstructOptions {
    /// How the student is repaired in closed form: `auto`, `none` for the plain cut, or
    /// `name:key=value`, several in their order [default: auto where there is --data]
    #[arg(long, alias = "heal")]
    #[serde(alias = "heal")]
    #[schemars(extend("plugins" = ["reconstruction"]))]
    pub reconstruct: Vec<PluginSpec>,
    /// Calibration text for the reconstructions: FILE, or FILE#a..b for some of its documents.
    #[arg(long, num_args = 1..)]
    pub data: Vec<DataSpec>,
    /// Windows used.
    #[arg(long, default_value_t = Self::default().samples)]
    pub samples: usize,
    /// Which windows: `spread` over the text, or the `first` ones.
    #[arg(long, default_value = "spread")]
    pub sampling: WindowSampling,
    /// Tokens per window [default: the model's positions, at most 512]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Windows per forward pass.
    #[arg(long, default_value_t = Self::default().batch_size)]
    pub batch_size: usize,
    /// Slice alone: Gemma's embeddings and narrower heads are not compensated for fewer channels.
    #[arg(long)]
    pub uncompensated: bool,
    /// How the text is read.
    #[serde(flatten)]
    #[command(flatten)]
    pub text: TextOptions,
}

impl Default for ReconstructOptions {
    fn default() -> Self {
        ReconstructOptions {
            reconstruct: Vec::new(),
            data: Vec::new(),
            samples: 128,
            sampling: WindowSampling::Spread,
            seq_len: None,
            batch_size: 8,
            uncompensated: false,
            text: TextOptions::default(),
        }
    }
}

impl ReconstructOptions {
    /// The calibration text, read where a reconstruction may ask for it or rounds score it; never
    /// from the output's own place.
    pub(crate) fn windows(
        &self,
        context: &Context,
        folder: &ModelFolder,
        is_scored: bool,
        out: Option<&Path>,
    ) -> Result<Option<Windows>> {
        at_least_1("batch_size", self.batch_size)?;
        let is_used = is_scored || self.looks_at_text(context)?;
        if !is_used && !self.data.is_empty() {
            context
                .progress
                .warn("data: nothing looks at it; leave it out, or take another reconstruction");
        }
        if !is_used || self.data.is_empty() {
            return Ok(None);
        }
        let tokenizer = context.reader(folder, &self.text)?;
        let seq_len = seq_len_or_default(self.seq_len, &folder.spec, &tokenizer);
        let reading = self.text.reading(seq_len, Some(self.samples), context.seed);
        let reading = reading.sampled(self.sampling);
        if let Some(out) = out {
            let files = files_of(&self.data, context.registry, &reading)?;
            OutputDir::refuse_inputs(out, files.iter().map(PathBuf::as_path))?;
        }
        let windows = reading.windows(&self.data, &tokenizer, context.registry)?;
        context.warn_of_date(&tokenizer);
        windows.check_fits(&folder.spec.options)?;
        Ok(Some(windows))
    }

    /// The student of a plan, reconstructed; streams and new weights wait in the folder `spill`,
    /// where there is one.
    pub(crate) fn editor<'a>(
        &self,
        context: &Context<'a>,
        folder: &'a ModelFolder,
        (plan, rankings): (Plan, Option<&'a Rankings>),
        windows: Option<&'a Windows>,
        (world, spill): (&'a dyn World, Option<&'a Path>),
    ) -> Result<StudentEditor<'a>> {
        let inputs = self.inputs(context, folder, rankings, windows, (world, spill));
        let mut editor = StudentEditor::new(inputs, plan)?;
        treat(&self.build(context)?, &mut editor)?;
        Ok(editor)
    }

    /// What reconstructions of a model's students start from.
    pub(crate) fn inputs<'a>(
        &self,
        context: &Context<'a>,
        folder: &'a ModelFolder,
        rankings: Option<&'a Rankings>,
        windows: Option<&'a Windows>,
        (world, spill): (&'a dyn World, Option<&'a Path>),
    ) -> ReconstructInputs<'a> {
        ReconstructInputs {
            source: &folder.checkpoint.tensors,
            spec: &folder.spec,
            rankings,
            calibration: windows.map(|windows| Calibration {
                windows,
                task: None,
                batch_size: self.batch_size,
                world,
                progress: context.progress,
            }),
            options: context.load_options(),
            seed: context.seed,
            compensates: !self.uncompensated,
            spill,
            only: None,
        }
    }

    /// Every reconstruction, before any work.
    pub(crate) fn build(&self, context: &Context) -> Result<Vec<Box<dyn Reconstruction>>> {
        let mut reconstructions = Vec::with_capacity(self.reconstruct.len());
        for (idx, spec) in self.named(context).iter().enumerate() {
            let built = context.registry.build::<dyn Reconstruction>(spec);
            reconstructions.push(built.map_err(|e| e.at(format!("reconstruct[{idx}]")))?);
        }
        Ok(reconstructions)
    }

    /// Those that are asked for, or the usual ones where there is text.
    pub(crate) fn named(&self, context: &Context) -> Vec<PluginSpec> {
        match self.reconstruct.is_empty() && !self.data.is_empty() {
            true => context.defaults.reconstructions(),
            false => self.reconstruct.clone(),
        }
    }

    /// Whether some reconstruction does.
    pub(crate) fn looks_at_text(&self, context: &Context) -> Result<bool> {
        let all = self.build(context)?;
        Ok(all.iter().any(|reconstruction| reconstruction.needs_text()))
    }
}

/// Applies reconstructions in their order.
pub(crate) fn treat(
    reconstructions: &[Box<dyn Reconstruction>],
    editor: &mut StudentEditor,
) -> Result<()> {
    for (idx, reconstruction) in reconstructions.iter().enumerate() {
        editor
            .treat(reconstruction.as_ref())
            .map_err(|e| e.at(format!("reconstruct[{idx}]")))?;
    }
    Ok(())
}

/// What a report and `plan.json` say of a reconstruction; nothing where there was none.
pub(crate) fn note(editor: &StudentEditor, report: &mut Value) {
    if !editor.reconstructed().is_empty() {
        let reconstructed: Vec<String> = editor
            .reconstructed()
            .iter()
            .map(PluginSpec::to_string)
            .collect();
        report["healed"] = json!(reconstructed);
    }
    if !editor.fits().is_empty() {
        report["fits"] = json!(in_json(editor));
    }
    if !editor.taken().is_empty() {
        report["taken"] = json!(editor.taken());
    }
    if editor.is_compensated() {
        report["compensated"] = json!(editor.compensated().join("; "));
    }
    if let Some(basis) = editor.hidden_basis() {
        report["hidden_basis"] = json!(basis);
    }
}
