//! A finite scalar, differentiable in the student's states, the same whatever stands where there is
//! no token.

use minitron_core::contract::{StateLoss, States};
use minitron_core::error::Result;
use tch::{Kind, Tensor};

use super::numbers::{gradient_error, is_finite, leaf, uniform};
use super::state_sites::{relatives, strangers};
use super::{SampleModel, Trial, UNTRIED, of_inputs};

const STEP: f64 = 1e-3;

/// Tries a loss on made-up states of heads of four channels, and its sites on every sample.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial, samples: &[SampleModel]) -> Result<String> {
    let loss = trial.build::<dyn StateLoss>()?;
    let (mut n_tried, mut refusal) = (0_usize, String::new());
    for sample in samples {
        for shown in [
            strangers(trial, loss.as_ref(), sample),
            relatives(trial, loss.as_ref(), sample),
        ] {
            match shown {
                Ok(()) => n_tried += 1,
                Err(error) => refusal = of_inputs(&error).ok_or(error)?,
            }
        }
    }
    if n_tried == 0 {
        return Ok(format!("{UNTRIED} a model has its sites: {refusal}"));
    }
    for causal in [false, true] {
        StateLossTrial {
            trial,
            loss: loss.as_ref(),
            causal,
        }
        .check()?;
    }
    let verdict = "a finite number of states of its sites, with a gradient for the student alone, \
                padding left out";
    Ok(verdict.into())
}

struct StateLossTrial<'a> {
    trial: &'a Trial<'a>,
    loss: &'a dyn StateLoss,
    causal: bool,
}

impl StateLossTrial<'_> {
    fn check(&self) -> Result<()> {
        let attention_mask_bt = Tensor::f_from_slice(&[1i64, 0, 1, 0, 0, 0, 1, 1, 1, 1])?
            .f_view([2, 5])?
            .f_to_kind(Kind::Bool)?;
        let padding_bt1 = attention_mask_bt.f_logical_not()?.f_unsqueeze(-1)?;
        let student = uniform(&[2, 5, 12], 2.0, 7)?.f_to_kind(Kind::Float)?;
        let teacher = uniform(&[2, 5, 12], 2.0, 8)?.f_to_kind(Kind::Float)?;
        let (value, gradient) = self.with_gradient(&student, &teacher, Some(&attention_mask_bt))?;
        for padding in [0.0, -1e4, f64::NAN] {
            let student = student.f_masked_fill(&padding_bt1, padding)?;
            let teacher = teacher.f_masked_fill(&padding_bt1, padding)?;
            let (other, others) =
                self.with_gradient(&student, &teacher, Some(&attention_mask_bt))?;
            let is_same = other.f_equal(&value)? && others.f_equal(&gradient)?;
            self.trial.ensure(
                is_same,
                format!("it, or its gradient, depends on what stands for no token: {padding}"),
            )?;
        }
        self.by_tokens(&student, &teacher, &attention_mask_bt)?;
        let _ = self.with_gradient(&student, &teacher, None)?;
        let error = gradient_error(&student, STEP, |x| {
            self.value(x, &teacher.f_to_kind(Kind::Double)?, None)
        })?;
        self.trial.ensure(
            error <= 1e-2,
            format!("its gradient is {error:.1e} away from its differences, relatively"),
        )
    }

    /// Two sequences are worth the mean of both, each by its tokens.
    fn by_tokens(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        attention_mask_bt: &Tensor,
    ) -> Result<()> {
        let together = self
            .value(student, teacher, Some(attention_mask_bt))?
            .f_double_value(&[])?;
        let (mut sum, mut n_tokens) = (0.0, 0.0);
        for row in 0..2 {
            let (student, teacher) = (student.f_narrow(0, row, 1)?, teacher.f_narrow(0, row, 1)?);
            let seen_1t = attention_mask_bt.f_narrow(0, row, 1)?;
            let n = seen_1t.f_sum(Kind::Double)?.f_double_value(&[])?;
            let value = self.value(&student, &teacher, Some(&seen_1t))?;
            sum += n * value.f_double_value(&[])?;
            n_tokens += n;
        }
        let by_tokens = sum / n_tokens;
        let is_mean = (together - by_tokens).abs() <= 1e-4 * by_tokens.abs().max(together.abs());
        let message = format!(
            "expected a mean over tokens: of two sequences {by_tokens}, by their tokens, got \
             {together}"
        );
        self.trial.ensure(is_mean, message)
    }

    fn value(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        attention_mask_bt: Option<&Tensor>,
    ) -> Result<Tensor> {
        let value = self.loss.loss(
            &self.states(student, attention_mask_bt),
            &self.states(teacher, attention_mask_bt),
        )?;
        let size = value.size();
        self.trial.ensure(
            size.is_empty(),
            format!("expected a scalar, got sides {size:?}"),
        )?;
        Ok(value)
    }

    fn states<'a>(&self, x_btc: &'a Tensor, attention_mask_bt: Option<&'a Tensor>) -> States<'a> {
        States {
            x_btc,
            attention_mask_bt,
            causal: self.causal,
            head_dim: 4,
        }
    }

    fn with_gradient(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        seen: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (student, teacher) = (leaf(student)?, leaf(teacher)?);
        let value = self.value(&student, &teacher, seen)?;
        self.trial.ensure(
            value.requires_grad(),
            "no gradient reaches the student's states",
        )?;
        value.f_backward()?;
        let gradient = student.f_grad()?;
        self.trial.ensure(
            gradient.defined(),
            "no gradient reaches the student's states",
        )?;
        let is_sound = is_finite(&value)? && is_finite(&gradient)?;
        self.trial.ensure(
            is_sound,
            "it, or its gradient, is not finite for finite states",
        )?;
        self.trial.ensure(
            !teacher.f_grad()?.defined(),
            "the teacher's states get a gradient",
        )?;
        Ok((value.f_detach()?, gradient))
    }
}
