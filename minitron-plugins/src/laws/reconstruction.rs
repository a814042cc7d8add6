//! Shapes stay; a plan that removes nothing changes nothing, byte for byte; values are finite.

use std::collections::BTreeMap;

use minitron_core::checkpoint::TensorSource;
use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::model::LoadOptions;
use minitron_core::plan::{Plan, Rankings};
use minitron_core::reconstruct::{ReconstructInputs, StudentEditor};
use minitron_core::windows::Windows;
use tch::Tensor;

use super::numbers::is_finite;
use super::samples::{half_of_all, outputs, random_rankings, some_windows};
use super::{SampleModel, Trial, UNTRIED, of_inputs};

/// Tries a reconstruction on a whole and a pruned student of every sample that it is for.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let windows = some_windows(16, 12, 32)?;
    let (mut n_treated, mut refusal) = (0_usize, String::new());
    for sample in samples {
        let rankings = random_rankings(&sample.groups(trial.registry)?, 31)?;
        let ward = Ward {
            trial,
            sample,
            windows: &windows,
            rankings,
        };
        match ward.whole().and_then(|()| ward.pruned()) {
            Ok(()) => n_treated += 1,
            Err(error) => refusal = of_inputs(&error).ok_or(error)?,
        }
    }
    match n_treated {
        0 => Ok(format!("{UNTRIED} a model is one for it: {refusal}")),
        _ => Ok(
            "a whole student unchanged, a pruned one of the same shapes, finite and the same twice"
                .into(),
        ),
    }
}

struct Ward<'a> {
    trial: &'a Trial<'a>,
    sample: &'a SampleModel,
    windows: &'a Windows,
    rankings: Rankings,
}

type WeightDigests = BTreeMap<String, Tensor>;

impl Ward<'_> {
    fn editor(&self, plan: &Plan) -> Result<StudentEditor<'_>> {
        let inputs = ReconstructInputs {
            source: &self.sample.source,
            spec: &self.sample.spec,
            rankings: Some(&self.rankings),
            calibration: Some(self.sample.calibration(self.windows, 8)?),
            options: LoadOptions::default(),
            seed: 0,
            compensates: true,
            spill: None,
            only: None,
        };
        StudentEditor::new(inputs, plan.clone())
    }

    fn treated(&self, plan: &Plan) -> Result<StudentEditor<'_>> {
        let mut editor = self.editor(plan)?;
        editor.treat(self.trial.build::<dyn Reconstruction>()?.as_ref())?;
        Ok(editor)
    }

    fn whole(&self) -> Result<()> {
        let reconstructed = weights(&self.treated(&Plan::default())?)?;
        let before = weights(&self.editor(&Plan::default())?)?;
        self.trial.ensure(
            reconstructed == before,
            "a student from which nothing was removed has other weights after it",
        )
    }

    fn pruned(&self) -> Result<()> {
        let (trial, space) = (self.trial, self.sample.space(self.trial.registry)?);
        let plan = space.plan(&half_of_all(&space), &self.rankings, &self.sample.spec)?;
        let editor = self.treated(&plan)?;
        let student = editor.student()?;
        let unknown = editor.spec().check(&student)?;
        trial.ensure(
            unknown.is_empty(),
            format!("it adds tensors: {}", unknown.join(", ")),
        )?;
        let reconstructed = weights(&editor)?;
        for (name, tensor) in &reconstructed {
            trial.ensure(
                is_finite(tensor)?,
                format!("`{name}` is not finite after it"),
            )?;
        }
        let is_sound = is_finite(&outputs(&student, editor.spec())?)?;
        trial.ensure(
            is_sound,
            "the outputs of a reconstructed student are not finite",
        )?;
        let again = weights(&self.treated(&plan)?)?;
        trial.ensure(reconstructed == again, "asked twice, it gives two students")
    }
}

fn weights(editor: &StudentEditor) -> Result<WeightDigests> {
    let student = editor.student()?;
    student
        .names()
        .into_iter()
        .map(|name| Ok((name.clone(), student.read(&name)?)))
        .collect()
}
