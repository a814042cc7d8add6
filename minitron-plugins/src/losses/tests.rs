//! Gradients of losses written out by hand, beside what automatic differentiation gives.

use minitron_core::contract::{LogitLoss, StateLoss, States, TeacherNeed};
use tch::{Kind, Tensor};

use super::distances::Distance;
use crate::laws::numbers::{leaf, relative, uniform};

/// Of the softmax's logits, and of their channels: enough in f64 for sums of a dozen terms.
const TOLERANCE: f64 = 1e-12;

/// The arguments of a loss on logits: three rows over seven tokens, in f64.
pub(super) struct Logits {
    pub student_nv: Tensor,
    pub teacher_nv: Tensor,
    pub labels_n: Tensor,
}

impl Logits {
    pub fn new() -> Self {
        Logits {
            student_nv: uniform(&[3, 7], 3.0, 1).unwrap(),
            teacher_nv: uniform(&[3, 7], 3.0, 2).unwrap(),
            labels_n: Tensor::from_slice(&[0i64, 6, 3]),
        }
    }

    /// Both softmaxes at a temperature: the student's q and the teacher's p, [N, V].
    pub fn softmaxes(&self, temperature: f64) -> (Tensor, Tensor) {
        let of = |logits: &Tensor| (logits / temperature).softmax(-1, Kind::Double);
        (of(&self.student_nv), of(&self.teacher_nv))
    }

    /// The gradient of the rows' sum is `expected` [N, V].
    pub fn assert_gradient(&self, loss: &dyn LogitLoss, expected_nv: &Tensor) {
        let student_nv = leaf(&self.student_nv).unwrap();
        let teacher_nv = (loss.teacher() != TeacherNeed::Nothing).then_some(&self.teacher_nv);
        let loss_n = loss.rows(&student_nv, teacher_nv, &self.labels_n).unwrap();
        loss_n.sum(Kind::Double).backward();
        let error = relative(&student_nv.grad(), expected_nv).unwrap();
        assert!(error <= TOLERANCE, "{loss:?}: {error:e}");
        self.assert_known_gradient(loss);
    }

    /// What a loss puts in place of the logits, where it does, is what automatic differentiation
    /// gives; in f64, f32 and beside bf16.
    fn assert_known_gradient(&self, loss: &dyn LogitLoss) {
        for (kind, tolerance) in [
            (Kind::Double, TOLERANCE),
            (Kind::Float, 1e-6),
            (Kind::BFloat16, 1e-2),
        ] {
            let student_nv = leaf(&self.student_nv.to_kind(kind)).unwrap();
            let teacher_nv = self.teacher_nv.to_kind(kind);
            let teacher_nv = (loss.teacher() != TeacherNeed::Nothing).then_some(&teacher_nv);
            let loss_n = loss.rows(&student_nv, teacher_nv, &self.labels_n).unwrap();
            (loss_n.sum(loss_n.kind()) * 0.3).backward();
            let before = teacher_nv.map(|it| it.copy());
            let mut place_nv = self.student_nv.to_kind(kind).copy();
            let known_n = loss
                .rows_and_gradient(&mut place_nv, teacher_nv, &self.labels_n, 0.3)
                .unwrap();
            let Some(known_n) = known_n else {
                assert!(place_nv.equal(&self.student_nv.to_kind(kind)));
                return;
            };
            assert_eq!((place_nv.kind(), known_n.kind()), (kind, loss_n.kind()));
            let of_gradient = relative(&place_nv, &student_nv.grad()).unwrap();
            let of_rows = relative(&known_n, &loss_n.detach()).unwrap();
            let error = of_gradient.max(of_rows);
            assert!(error <= tolerance, "{loss:?} in {kind:?}: {error:e}");
            let is_left = teacher_nv
                .zip(before.as_ref())
                .is_none_or(|(teacher_nv, before)| teacher_nv.equal(before));
            assert!(is_left, "{loss:?} changes the teacher's logits");
        }
    }
}

/// q·(g − Σ q·g): the gradient of a function of q = softmax(s) in s, where g is its gradient in q.
pub(super) fn through_softmax(q_nv: &Tensor, g_nv: &Tensor) -> Tensor {
    let mean_n1 = (q_nv * g_nv).sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
    q_nv * (g_nv - mean_n1)
}

/// −(t/(|s|·|t|) − cos(s, t)·s/|s|²): the gradient of 1 − cos(s, t) in s, along the last dimension.
pub(super) fn of_one_minus_cos(s: &Tensor, t: &Tensor) -> Tensor {
    let last = [-1i64].as_slice();
    let (length_of_s, length_of_t) = (
        s.norm_scalaropt_dim(2, last, true),
        t.norm_scalaropt_dim(2, last, true),
    );
    let lengths = &length_of_s * length_of_t;
    let cos = (s * t).sum_dim_intlist(last, true, Kind::Double) / &lengths;
    cos * s / length_of_s.square() - t / lengths
}

/// The gradient of a loss on states [B, T, C] is `expected`.
pub(super) fn assert_state_gradient(
    loss: &dyn StateLoss,
    student: &States,
    teacher: &States,
    expected_btc: &Tensor,
) {
    let x_btc = leaf(student.x_btc).unwrap();
    let shown = States {
        x_btc: &x_btc,
        ..*student
    };
    loss.loss(&shown, teacher).unwrap().backward();
    let error = relative(&x_btc.grad(), expected_btc).unwrap();
    assert!(error <= TOLERANCE, "{loss:?}: {error:e}");
}

/// The gradient of a loss that is the mean of a distance over tokens: that of the distance divided
/// by their number, and nothing where there is padding.
pub(super) fn assert_is_mean_of(distance: Distance, loss: &dyn StateLoss) {
    let (student, teacher) = (
        uniform(&[2, 4, 8], 2.0, 3).unwrap(),
        uniform(&[2, 4, 8], 2.0, 4).unwrap(),
    );
    let attention_mask_bt = Tensor::from_slice(&[true, true, true, false, true, true, true, true]);
    let attention_mask_bt = attention_mask_bt.view([2, 4]);
    let states = |x_btc| States {
        x_btc,
        attention_mask_bt: Some(&attention_mask_bt),
        causal: true,
        head_dim: 4,
    };
    let of_a_token = match distance {
        Distance::Cosine => of_one_minus_cos(&student, &teacher),
        Distance::Mse => (&student - &teacher) * (2.0 / 8.0),
    };
    let expected = of_a_token * attention_mask_bt.unsqueeze(-1) / 7.0;
    assert_state_gradient(loss, &states(&student), &states(&teacher), &expected);
}
