//! The gradient of one loss over a whole calibration text. N rows, E embed.

use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::pass::{own_batches, tokens_of};
use crate::ranks::Ranks;
use minitron_core::calibrate::Calibration;
use minitron_core::checkpoint::MemorySource;
use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::{Error, Result};
use minitron_core::model::{NoTap, Parameter, Transformer, gradient_on_logits};
use minitron_core::windows::{Batch, Task};

/// d/dw of the mean of `loss` over all predictions on the windows, by the names and in the layout
/// of the model's source, so that it can be read like the weights. Each rank sees its share of the
/// batches, and their sums are added up: in f32, so that several ranks differ in the last digits.
///
/// # Errors
/// `Recipe` when the loss needs a teacher; `Data` when nothing is predicted.
pub fn mean_gradient(
    model: &Transformer,
    loss: Arc<dyn LogitLoss>,
    input: &Calibration,
    ranks: Ranks,
) -> Result<MemorySource> {
    let Some(task) = input.task.filter(|_| model.has_head()) else {
        let message = format!(
            "this `{}` model has no language-model head; a gradient needs a loss",
            model.spec.architecture
        );
        return Err(Error::Data(message));
    };
    if loss.teacher() != TeacherNeed::Nothing {
        return Err(Error::Recipe(
            "a metric's loss cannot have a teacher; take one of the labels alone".into(),
        ));
    }
    let _span = tracing::info_span!("gradient", n_tokens = input.windows.n_tokens()).entered();
    let batches = input.windows.batches(input.batch_size);
    let mut n_predictions = 0;
    for batch in &batches {
        n_predictions += targets_of(task, input, batch, model.device)?.n_rows();
    }
    if n_predictions == 0 {
        return Err(Error::Data(
            "a gradient needs predictions, and the calibration text has none; give other text"
                .into(),
        ));
    }
    let own = own_batches(input, ranks);
    let n_tokens = tokens_of(input, &own)?;
    input.progress.start("gradient, tokens", n_tokens as u64);
    for batch in &own {
        let targets = targets_of(task, input, batch, model.device)?;
        if targets.n_rows() > 0 {
            add_gradient(model, loss.as_ref(), &targets, n_predictions)?;
        }
        input.progress.advance(targets.ids_bt.numel() as u64, "");
    }
    input.progress.finish();
    let parameters = model.parameters();
    let mut gradients = MemorySource::default();
    for (parameter, gradient) in parameters.iter().zip(summed(parameters, ranks)?) {
        gradients.insert(parameter.name.as_str(), &gradient)?;
    }
    Ok(gradients)
}

/// The gradients over all ranks; one that never had any is zeros.
fn summed(parameters: &[Parameter], ranks: Ranks) -> Result<Vec<Tensor>> {
    let mut gradients = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        gradients.push(parameter.gradient()?);
    }
    if !ranks.has_others() {
        return Ok(gradients);
    }
    let mut sums = Vec::with_capacity(gradients.len());
    for gradient in &gradients {
        let own = gradient.f_detach()?.f_to_device(Device::Cpu)?;
        sums.push(own.f_to_kind(Kind::Float)?.f_contiguous()?);
    }
    ranks.sum_tensors(&sums)?;
    let mut summed = Vec::with_capacity(sums.len());
    for (sum, gradient) in sums.iter().zip(&gradients) {
        summed.push(sum.f_to_kind(gradient.f_kind()?)?);
    }
    Ok(summed)
}

/// What is predicted in the windows of a batch.
fn targets_of(
    task: Task,
    input: &Calibration,
    windows: &Range<usize>,
    device: Device,
) -> Result<Batch> {
    let windows: Vec<usize> = windows.clone().collect();
    task.batch(input.windows, &windows, device)
}

/// Adds one batch's part.
fn add_gradient(
    model: &Transformer,
    loss: &dyn LogitLoss,
    targets: &Batch,
    n_predictions: i64,
) -> Result<()> {
    let hidden_bte = model.hidden(targets.input(), &mut NoTap, None)?;
    let head = model.frame.head()?;
    let inputs_ne = head.inputs(&targets.rows(&hidden_bte)?)?;
    let gradient_ne = head.gradient(&inputs_ne, model.spec.options.vocab, |logits_nv, start| {
        let labels_n = targets.labels_n.f_narrow(0, start, logits_nv.size2()?.0)?;
        gradient_on_logits(&logits_nv, |logits_nv| {
            summed_loss(loss, logits_nv, &labels_n, n_predictions)
        })
    })?;
    // d/dh of sum(h · g) is g: how a ready gradient enters the graph.
    inputs_ne
        .f_mul(&gradient_ne)?
        .f_sum(inputs_ne.f_kind()?)?
        .f_backward()?;
    Ok(())
}

/// A chunk's part of the mean over all predictions.
fn summed_loss(
    loss: &dyn LogitLoss,
    logits_nv: &Tensor,
    labels_n: &Tensor,
    n_predictions: i64,
) -> Result<Tensor> {
    let loss_n = loss.rows(logits_nv, None, labels_n)?;
    if loss_n.size() != labels_n.size() {
        let message = format!(
            "expected one loss for each of {:?} rows, got {:?}",
            labels_n.size(),
            loss_n.size()
        );
        return Err(Error::Plugin {
            tag: "gradient".into(),
            origin: "loss".into(),
            message,
        });
    }
    Ok(loss_n
        .f_sum(loss_n.f_kind()?)?
        .f_mul_scalar(1.0 / n_predictions as f64)?)
}
