use std::fmt::Debug;

use tch::Tensor;

use crate::error::{Present, Result};
use crate::model::Site;
use crate::spec::ModelSpec;

/// Two places whose states are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SitePair {
    /// In the student.
    pub student: Site,
    /// In the teacher.
    pub teacher: Site,
}

/// One model's activations at a site. B batch, T tokens, C the site's width.
#[derive(Debug)]
pub struct States<'a> {
    /// The activations [B, T, C]; the student's carry gradient.
    pub x_btc: &'a Tensor,
    /// Whether a position holds a token rather than padding [B, T], boolean; none where all do.
    pub attention_mask_bt: Option<&'a Tensor>,
    /// Whether a position of this model sees only itself and earlier ones.
    pub causal: bool,
    /// Channels of one of this model's attention heads.
    pub head_dim: usize,
}

impl States<'_> {
    /// The states of all tokens [N, C], padding left out.
    pub fn rows(&self) -> Result<Tensor> {
        let width = self
            .x_btc
            .size()
            .last()
            .copied()
            .present("channels of states")?;
        let rows_nc = self.x_btc.f_reshape([-1, width])?;
        match self.attention_mask_bt {
            None => Ok(rows_nc),
            Some(attention_mask_bt) => Ok(rows_nc.f_index_select(
                0,
                &attention_mask_bt
                    .f_reshape([-1i64])?
                    .f_nonzero()?
                    .f_reshape([-1i64])?,
            )?),
        }
    }
}

/// A loss on states inside the models, one pair of places at a time; the engine averages the pairs,
/// and a step's batches by their tokens.
///
/// # Law
/// A finite scalar for finite states, differentiable in the student's, the same whatever stands
/// where `attention_mask_bt` is false; the teacher's carry no gradient. It is a mean over tokens:
/// of two sequences together, that of each alone, weighed by its tokens.
#[typetag::serde(tag = "type")]
pub trait StateLoss: Debug + Send + Sync {
    /// What is compared in models of these shapes.
    ///
    /// # Errors
    /// `Recipe` where a named layer does not exist, saying which do.
    fn pairs(&self, student: &ModelSpec, teacher: &ModelSpec) -> Result<Vec<SitePair>>;

    /// Whether a linear map, learned with the student and shared by all pairs, takes the student's
    /// states to the teacher's width first. It is there only where the widths differ.
    fn projects(&self) -> bool;

    /// The loss at one pair, a scalar: its mean over tokens.
    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor>;
}
