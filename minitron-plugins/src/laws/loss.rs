//! Row n of a loss on logits depends on row n alone and is finite, differentiable in the student's
//! logits alone.

use minitron_core::contract::{LogitLoss, TeacherNeed};
use minitron_core::error::Result;
use tch::{Kind, Tensor};

use super::Trial;
use super::numbers::{gradient_error, is_finite, leaf, relative, uniform};

/// Labels of six rows.
const LABELS: [i64; 6] = [0, 10, 3, 3, 7, 1];
const VOCAB: i64 = 11;
/// Of central differences, wide enough for losses that reckon in f32.
const STEP: f64 = 1e-3;

/// Tries a loss on small, mixed and very large logits.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial) -> Result<String> {
    let loss = trial.build::<dyn LogitLoss>()?;
    let court = LossTrial {
        trial,
        loss: loss.as_ref(),
        labels_n: Tensor::f_from_slice(&LABELS)?,
    };
    let (student_nv, teacher_nv) = (mixed(4)?, mixed(5)?);
    court.by_rows(&student_nv, &teacher_nv)?;
    for seed in 0..4 {
        let _ = court.finite(&large(seed)?, &large(seed + 10)?)?;
    }
    court.gradient()?;
    court.known_gradient()?;
    court.constants()?;
    court.linear()?;
    Ok("one finite loss per row, of that row alone, with a gradient for the student alone".into())
}

struct LossTrial<'a> {
    trial: &'a Trial<'a>,
    loss: &'a dyn LogitLoss,
    labels_n: Tensor,
}

/// Logits with rows of very different size, f32.
fn mixed(seed: u64) -> Result<Tensor> {
    let sizes: Vec<f64> = (0..6).map(|row| f64::from(row).exp2()).collect();
    let sizes_n1 = Tensor::f_from_slice(&sizes)?.f_view([6, 1])?;
    Ok(uniform(&[6, VOCAB], 1.0, seed)?
        .f_mul(&sizes_n1)?
        .f_to_kind(Kind::Float)?)
}

/// Logits of 1e4 and −1e4, f32.
fn large(seed: u64) -> Result<Tensor> {
    Ok(uniform(&[6, VOCAB], 1.0, seed)?
        .f_sign()?
        .f_mul_scalar(1e4)?
        .f_to_kind(Kind::Float)?)
}

impl LossTrial<'_> {
    fn rows(&self, student_nv: &Tensor, teacher_nv: &Tensor) -> Result<Tensor> {
        let teacher = (self.loss.teacher() != TeacherNeed::Nothing).then_some(teacher_nv);
        self.loss.rows(student_nv, teacher, &self.labels_n)
    }

    fn by_rows(&self, student_nv: &Tensor, teacher_nv: &Tensor) -> Result<()> {
        let loss_n = self.finite(student_nv, teacher_nv)?;
        let again_n = self.rows(student_nv, teacher_nv)?;
        self.trial.ensure(
            again_n.f_equal(&loss_n)?,
            "asked twice, it gives two answers",
        )?;
        let needs_teacher = self.loss.teacher() != TeacherNeed::Nothing;
        for row in 0..6 {
            let student = student_nv.f_narrow(0, row, 1)?;
            let teacher = teacher_nv.f_narrow(0, row, 1)?;
            let label = self.labels_n.f_narrow(0, row, 1)?;
            let teacher = needs_teacher.then_some(&teacher);
            let alone = self.loss.rows(&student, teacher, &label)?;
            let (alone, among) = (alone.f_double_value(&[0])?, loss_n.f_double_value(&[row])?);
            let is_own = (alone - among).abs() <= 1e-6 * among.abs().max(1.0);
            self.trial.ensure(
                is_own,
                format!("row {row} depends on others: {alone} alone, {among} among them"),
            )?;
        }
        Ok(())
    }

    /// Loss and gradient are finite, and the teacher gets none.
    fn finite(&self, student_nv: &Tensor, teacher_nv: &Tensor) -> Result<Tensor> {
        let (student, teacher) = (leaf(student_nv)?, leaf(teacher_nv)?);
        let loss_n = self.rows(&student, &teacher)?;
        let size = loss_n.size();
        self.trial.ensure(
            size == [6],
            format!("expected one loss for each of 6 rows, got {size:?}"),
        )?;
        self.trial.ensure(
            loss_n.requires_grad(),
            "no gradient reaches the student's logits",
        )?;
        loss_n.f_sum(Kind::Double)?.f_backward()?;
        let gradient = student.f_grad()?;
        self.trial.ensure(
            gradient.defined(),
            "no gradient reaches the student's logits",
        )?;
        let is_sound = is_finite(&loss_n)? && is_finite(&gradient)?;
        self.trial.ensure(
            is_sound,
            "it, or its gradient, is not finite for finite logits",
        )?;
        self.trial.ensure(
            !teacher.f_grad()?.defined(),
            "the teacher's logits get a gradient",
        )?;
        Ok(loss_n.f_detach()?)
    }

    fn gradient(&self) -> Result<()> {
        let (student_nv, teacher_nv) =
            (uniform(&[6, VOCAB], 3.0, 1)?, uniform(&[6, VOCAB], 3.0, 2)?);
        let error = gradient_error(&student_nv, STEP, |x| {
            Ok(self.rows(x, &teacher_nv)?.f_sum(Kind::Double)?)
        })?;
        self.trial.ensure(
            error <= 1e-2,
            format!("its gradient is {error:.1e} away from its differences, relatively"),
        )
    }

    /// A gradient in place of the logits is that of the rows, and so are the rows beside it.
    fn known_gradient(&self) -> Result<()> {
        const FACTOR: f64 = 0.25;
        for (student_nv, teacher_nv) in [(mixed(7)?, mixed(8)?), (large(9)?, large(19)?)] {
            let mut place_nv = student_nv.f_detach_copy()?;
            let needs_teacher = self.loss.teacher() != TeacherNeed::Nothing;
            let teacher = needs_teacher.then_some(&teacher_nv);
            let known =
                self.loss
                    .rows_and_gradient(&mut place_nv, teacher, &self.labels_n, FACTOR)?;
            let Some(known_n) = known else {
                let is_left = place_nv.f_equal(&student_nv)?;
                let message = "it changes the student's logits and gives no gradient for them";
                return self.trial.ensure(is_left, message);
            };
            let student_nv = leaf(&student_nv)?;
            let loss_n = self.rows(&student_nv, &teacher_nv)?;
            loss_n
                .f_sum(Kind::Double)?
                .f_mul_scalar(FACTOR)?
                .f_backward()?;
            let of_rows = relative(&known_n, &loss_n.f_detach()?)?;
            let error = relative(&place_nv, &student_nv.f_grad()?)?.max(of_rows);
            self.trial.ensure(
                error <= 1e-5,
                format!("the gradient it puts in place of logits is {error:.1e} away, relatively"),
            )?;
        }
        Ok(())
    }

    /// Under the mean of two of the teacher's distributions, the gradient is the mean.
    fn linear(&self) -> Result<()> {
        if !self.loss.is_linear_in_teacher() {
            return Ok(());
        }
        let student_nv = uniform(&[6, VOCAB], 3.0, 7)?;
        let (one_nv, other_nv) = (uniform(&[6, VOCAB], 3.0, 8)?, uniform(&[6, VOCAB], 3.0, 9)?);
        let both_nv = one_nv
            .f_softmax(-1, Kind::Double)?
            .f_add(&other_nv.f_softmax(-1, Kind::Double)?)?
            .f_div_scalar(2.0)?;
        let mean_nv = self
            .gradient_under(&student_nv, &one_nv)?
            .f_add(&self.gradient_under(&student_nv, &other_nv)?)?
            .f_div_scalar(2.0)?;
        let found_nv = self.gradient_under(&student_nv, &both_nv.f_log()?)?;
        let error = relative(&found_nv, &mean_nv)?;
        self.trial.ensure(
            error <= 1e-5,
            format!(
                "said to be linear in the teacher's distribution, its gradient under the mean of \
                 two is {error:.1e} away from the mean, relatively"
            ),
        )
    }

    fn gradient_under(&self, student_nv: &Tensor, teacher_nv: &Tensor) -> Result<Tensor> {
        let student_nv = leaf(student_nv)?;
        let loss_n = self.rows(&student_nv, teacher_nv)?;
        loss_n.f_sum(Kind::Double)?.f_backward()?;
        Ok(student_nv.f_grad()?)
    }

    /// What asks for a distribution sees logits up to a constant.
    fn constants(&self) -> Result<()> {
        if !matches!(self.loss.teacher(), TeacherNeed::Distribution { .. }) {
            return Ok(());
        }
        let (student_nv, teacher_nv) =
            (uniform(&[6, VOCAB], 3.0, 5)?, uniform(&[6, VOCAB], 3.0, 6)?);
        let constants_n1 =
            Tensor::f_from_slice(&[8.0, -20.0, 0.5, 1.0, -1.0, 3.0])?.f_view([6, 1])?;
        let plain = self.rows(&student_nv, &teacher_nv)?;
        let change = relative(
            &self.rows(&student_nv, &teacher_nv.f_add(&constants_n1)?)?,
            &plain,
        )?;
        let message = format!(
            "a constant added to a row of the teacher's logits changes it by {change:.1e}, \
             relatively"
        );
        self.trial.ensure(
            change <= 1e-4,
            format!("{message}; ask for TeacherNeed::Logits"),
        )
    }
}
