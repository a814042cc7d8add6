//! The gradient of one loss over a whole calibration text.

use std::sync::Arc;

use super::{Counts, Objective, Term};
use crate::calibrate::Calibration;
use crate::checkpoint::MemorySource;
use crate::contract::{LogitLoss, TeacherNeed};
use crate::error::{Error, Result};
use crate::model::Transformer;

/// d/dw of the mean of `loss` over all predictions on the windows, by the names and in the layout of the model's source, so
/// that it can be read like the weights.
///
/// # Errors
/// `Recipe` when the loss needs a teacher; `Data` when nothing is predicted.
pub fn mean_gradient(model: &Transformer, loss: Arc<dyn LogitLoss>, input: &Calibration) -> Result<MemorySource> {
    let Some(task) = input.task.filter(|_| model.has_head()) else {
        let message = format!(
            "this `{}` model has no language-model head; a gradient needs a loss",
            model.blueprint.architecture
        );
        return Err(Error::Data(message));
    };
    if loss.teacher() != TeacherNeed::Nothing {
        return Err(Error::Recipe("a metric's loss cannot have a teacher; take one of the labels alone".into()));
    }
    let objective =
        Objective { terms: vec![Term { label: "gradient".into(), weight: 1.0, loss }], ..Objective::default() };
    let _span = tracing::info_span!("gradient", n_tokens = input.windows.n_tokens()).entered();
    let batches = input.windows.batches(input.batch_size);
    let targets =
        |batch: &std::ops::Range<usize>| task.batch(input.windows, &batch.clone().collect::<Vec<_>>(), model.device);
    let whole: Counts = batches.iter().map(|batch| Counts::of(&targets(batch)?)).sum::<Result<_>>()?;
    if whole.predictions == 0 {
        return Err(Error::Data(
            "a gradient needs predictions, and the calibration text has none; give other text".into(),
        ));
    }
    input.progress.start("gradient, tokens", input.windows.n_tokens() as u64);
    for batch in &batches {
        let targets = targets(batch)?;
        objective.backward(model, None, &targets, whole)?;
        input.progress.advance(targets.ids_bt.numel() as u64, "");
    }
    input.progress.finish();
    let mut gradients = MemorySource::default();
    for parameter in model.parameters() {
        gradients.insert(parameter.name.as_str(), &parameter.gradient()?)?;
    }
    Ok(gradients)
}
