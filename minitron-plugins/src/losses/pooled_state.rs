use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::Result;
use minitron_core::evaluate::Pooling;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::distances::{Distance, alike};
use super::divergences::widened;
use super::layer_map::Layers;

/// The `distance` between the two models' embeddings of a sequence, which are pooled from the
/// states after the last layer as the next norm gives them out [B, T, E]. Of B sequences of n_b
/// tokens:
///
/// ```text
/// Σ_b n_b · d(pool(s_b), pool(t_b)) / Σ_b n_b
/// ```
/// So sequences count by their tokens, as in other losses. It is what sentence encoders are used
/// for; take it with `--pack documents`, since a window of running text is no sentence. Dense
/// modules behind the pooling are not part of it. The student's states are lifted to the teacher's
/// width by a learned linear map.
///
/// arXiv 2004.09813 distils embeddings by `mse`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PooledState {
    /// `cosine` (1 − cos) or `mse` (mean over channels).
    pub distance: Distance,
    /// `mean` over a sequence's tokens, or `cls`, its first one: what the encoder's users take.
    pub pooling: Pooling,
}

minitron_core::plugin! {
    StateLoss for PooledState {
        tag: "pooled_state",
        summary: "distance between sentence embeddings, pooled from the last states",
        source: "in the manner of arXiv 2004.09813, section 2",
    }
}

#[typetag::serde(name = "pooled_state")]
impl StateLoss for PooledState {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        Layers::Last.pairs("pooled_state", models, |model, layer| {
            Ok(model.normed_output(layer))
        })
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        alike("pooled_state", student, teacher)?;
        let pooled = |states: &States| -> Result<Tensor> {
            let x_bte = widened(states.x_btc)?;
            self.pooling.pool(&x_bte, states.attention_mask_bt)
        };
        let (student_be, teacher_be) = (pooled(student)?, pooled(teacher)?.f_detach()?);
        let loss_b = self.distance.of_rows(&student_be, &teacher_be)?;
        let Some(attention_mask_bt) = student.attention_mask_bt else {
            return Ok(loss_b.f_mean(loss_b.f_kind()?)?);
        };
        let kind = loss_b.f_kind()?;
        let n_b = attention_mask_bt.f_sum_dim_intlist(-1i64, false, kind)?;
        let n_tokens = n_b.f_sum(kind)?.f_clamp_min(1.0)?;
        Ok(loss_b.f_mul(&n_b)?.f_sum(kind)?.f_div(&n_tokens)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::laws::numbers::uniform;
    use crate::losses::tests::{assert_state_gradient, of_one_minus_cos};

    #[test]
    fn its_gradient_is_the_one_written_out() {
        let (student, teacher) = (
            uniform(&[2, 4, 8], 2.0, 3).unwrap(),
            uniform(&[2, 4, 8], 2.0, 4).unwrap(),
        );
        let attention_mask_bt =
            Tensor::from_slice(&[false, true, true, false, true, true, true, true]).view([2, 4]);
        let states = |x_btc| States {
            x_btc,
            attention_mask_bt: Some(&attention_mask_bt),
            causal: true,
            head_dim: 4,
        };
        // Which tokens an embedding is made of, and how much of it each is.
        let shares = [
            (Pooling::Mean, [0.0, 0.5, 0.5, 0.0, 0.25, 0.25, 0.25, 0.25]),
            (Pooling::Cls, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        ];
        for (pooling, share) in shares {
            let share_bt1 = Tensor::from_slice(&share).view([2, 4, 1]);
            let pooled = |x: &Tensor| {
                (x * &share_bt1).sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
            };
            let (of_student, of_teacher) = (pooled(&student), pooled(&teacher));
            let n_b1 = Tensor::from_slice(&[2.0, 4.0]).view([2, 1]) / 6.0;
            for (distance, gradient) in [
                (Distance::Cosine, of_one_minus_cos(&of_student, &of_teacher)),
                (Distance::Mse, (&of_student - &of_teacher) * (2.0 / 8.0)),
            ] {
                let loss = PooledState { distance, pooling };
                let expected = (gradient * &n_b1).unsqueeze(1) * &share_bt1;
                assert_state_gradient(&loss, &states(&student), &states(&teacher), &expected);
            }
        }
    }
}
