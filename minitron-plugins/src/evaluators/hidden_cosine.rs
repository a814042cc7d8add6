use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Input, NoTap};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Mean over windows and tokens of the cosine between the last hidden states of model and teacher;
/// a pruned model is compared with the teacher's channels that it kept. `pooled_cosine` is the same
/// for the mean over each window's tokens, which is what sentence encoders give out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HiddenCosine {}

minitron_core::plugin! {
    Evaluator for HiddenCosine {
        tag: "hidden_cosine",
        summary: "cosine between the last hidden states of model and teacher",
        source: "the usual similarity of encoders; no paper",
    }
}

#[typetag::serde(name = "hidden_cosine")]
impl Evaluator for HiddenCosine {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let _no_grad = tch::no_grad_guard();
        let teacher = subject.teacher.ok_or_else(|| lacking("teacher"))?;
        let windows = subject.windows.ok_or_else(|| lacking("data"))?;
        windows.check_fits(&subject.model.spec.options)?;
        let (mut n_tokens, mut n_windows, mut by_token, mut pooled) = (0.0, 0.0, 0.0, 0.0);
        subject
            .progress
            .start("eval, tokens", windows.n_tokens() as u64);
        for batch in windows.batches(subject.batch_size) {
            let ids_bt = windows.batch(batch.clone(), subject.model.device)?;
            let positions_bt = windows.positions(batch, subject.model.device)?;
            let input = Input {
                ids_bt: &ids_bt,
                attention_mask_bt: None,
                positions_bt: positions_bt.as_ref(),
            };
            let ours_bte = subject
                .model
                .hidden(input, &mut NoTap, None)?
                .f_to_kind(Kind::Float)?;
            let theirs_bte = kept(
                &teacher.hidden(input, &mut NoTap, None)?,
                subject.kept_hidden,
            )?;
            let cosine_bt = Tensor::f_cosine_similarity(
                &checked(&ours_bte, &theirs_bte)?,
                &theirs_bte,
                -1,
                1e-12,
            )?;
            by_token += cosine_bt.f_sum(Kind::Double)?.f_double_value(&[])?;
            n_tokens += cosine_bt.numel() as f64;
            let (ours_be, theirs_be) = (pooled_states(&ours_bte)?, pooled_states(&theirs_bte)?);
            let cosine_b = Tensor::f_cosine_similarity(&ours_be, &theirs_be, -1, 1e-12)?;
            pooled += cosine_b.f_sum(Kind::Double)?.f_double_value(&[])?;
            n_windows += cosine_b.numel() as f64;
            subject.progress.advance(ids_bt.numel() as u64, "");
        }
        subject.progress.finish();
        Ok(Measurements::from([
            ("hidden_cosine".to_owned(), by_token / n_tokens),
            ("pooled_cosine".to_owned(), pooled / n_windows),
            ("n_positions".to_owned(), n_tokens),
        ]))
    }
}

fn lacking(what: &str) -> Error {
    Error::Data(format!(
        "hidden_cosine compares with a teacher on text; no {what} is given"
    ))
}

/// The mean over tokens.
fn pooled_states(x_bte: &Tensor) -> Result<Tensor> {
    Ok(x_bte.f_mean_dim([1i64].as_slice(), false, Kind::Float)?)
}

fn kept(teacher_bte: &Tensor, kept_hidden: Option<&[usize]>) -> Result<Tensor> {
    let teacher_bte = teacher_bte.f_to_kind(Kind::Float)?;
    let Some(kept) = kept_hidden else {
        return Ok(teacher_bte);
    };
    let channels: Vec<i64> = kept.iter().map(|&channel| channel as i64).collect();
    let n_channels = teacher_bte.size().last().copied().unwrap_or(0);
    if channels.last().is_some_and(|&last| last >= n_channels) {
        return Err(Error::Data(
            "the model's plan.json names channels that this teacher does not have".into(),
        ));
    }
    Ok(teacher_bte.f_index_select(
        2,
        &Tensor::f_from_slice(&channels)?.f_to_device(teacher_bte.device())?,
    )?)
}

fn checked(ours_bte: &Tensor, theirs_bte: &Tensor) -> Result<Tensor> {
    if ours_bte.size() != theirs_bte.size() {
        let message = format!(
            "hidden states of shape {:?} and {:?} cannot be compared; a pruned folder keeps its \
             plan.json for this",
            ours_bte.size(),
            theirs_bte.size()
        );
        return Err(Error::Data(message));
    }
    Ok(ours_bte.shallow_clone())
}
