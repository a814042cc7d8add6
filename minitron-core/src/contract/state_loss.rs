use std::fmt::Debug;

use tch::Tensor;

use crate::error::{Error, Present, Result};
use crate::model::Site;
use crate::reconstruct::{KeptUnits, Replaced};
use crate::spec::{DEPTH, ModelSpec, dim_of_layer};

/// Two places whose states are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePair {
    /// In the student.
    pub student: Site,
    /// In the teacher.
    pub teacher: Site,
    /// Channels of the teacher's states that the loss is shown, in the order of the student's; all
    /// of them where none are named.
    pub channels: Option<Vec<usize>>,
    /// Channels of the student's states that the loss is shown; all of them where none are named.
    pub student_channels: Option<Vec<usize>>,
}

impl SitePair {
    /// Two places, with all channels of both.
    pub fn new(student: Site, teacher: Site) -> Self {
        SitePair {
            student,
            teacher,
            channels: None,
            student_channels: None,
        }
    }

    /// Channels of states [B, T, C] by their indices \[K\]: [B, T, K].
    pub fn pick(x_btc: &Tensor, channels_k: &Tensor) -> Result<Tensor> {
        Ok(x_btc.f_index_select(-1, channels_k)?)
    }
}

/// The models that a loss compares.
#[derive(Debug, Clone, Copy)]
pub struct ModelPair<'a> {
    /// Who learns.
    pub student: &'a ModelSpec,
    /// Who is listened to.
    pub teacher: &'a ModelSpec,
    /// Which of the teacher's units the student kept, where it was cut from this teacher and that
    /// is known. A dim that the plan leaves out stayed whole; the channels of a turned stream
    /// are none of the teacher's, and left out.
    pub kept: Option<&'a KeptUnits>,
}

impl<'a> ModelPair<'a> {
    /// Models of which is not known whether one was cut from the other.
    pub fn new(student: &'a ModelSpec, teacher: &'a ModelSpec) -> Self {
        ModelPair {
            student,
            teacher,
            kept: None,
        }
    }

    /// The teacher's layer behind each of the student's, for the loss of this name.
    ///
    /// # Errors
    /// `Recipe` where it is not known what the student kept, or that leaves another depth.
    pub fn kept_layers(&self, tag: &str) -> Result<Vec<usize>> {
        let n_layers = self.student.n_layers();
        self.kept_of(tag, DEPTH, self.teacher.n_layers(), n_layers)
    }

    /// The units that a layer of the student kept of one of the teacher's, of dims of a kind.
    ///
    /// # Errors
    /// `Recipe` where that is not known, or leaves another size.
    pub fn kept_units(
        &self,
        tag: &str,
        kind: &str,
        (student, teacher): (usize, usize),
    ) -> Result<Vec<usize>> {
        let dim = dim_of_layer(kind, teacher);
        let n_units = self.teacher.dim(&dim)?.size;
        let n_kept = self.student.dim(&dim_of_layer(kind, student))?.size;
        self.kept_of(tag, &dim, n_units, n_kept)
    }

    /// Units of a kind that a layer of the student took of dropped layers: the layer, and which
    /// stand where.
    pub fn taken_units(&self, kind: &str, student: usize) -> Vec<(usize, &'a Replaced)> {
        let taken = self.kept.iter().flat_map(|kept| &kept.taken);
        let of_layer = taken.filter(|taken| taken.layer == student);
        let units = of_layer.filter_map(|taken| Some((taken.from, taken.units.get(kind)?)));
        units.collect()
    }

    /// What the plan keeps of a dim, of so many units as many as the student has.
    fn kept_of(&self, tag: &str, dim: &str, n_units: usize, n_kept: usize) -> Result<Vec<usize>> {
        let Some(KeptUnits { plan, .. }) = self.kept else {
            return Err(Error::Recipe(format!(
                "{tag}: which units of the teacher the student kept is not known: beside it lies \
                 no plan.json of a cut from this teacher; name the teacher that it was pruned \
                 from, or leave this loss out"
            )));
        };
        let kept = plan.kept.get(dim).cloned();
        let kept = kept.unwrap_or_else(|| (0..n_units).collect());
        if kept.len() == n_kept && kept.iter().all(|&unit| unit < n_units) {
            return Ok(kept);
        }
        Err(Error::Recipe(format!(
            "{tag}: the student's plan keeps {} of the teacher's {n_units} units of `{dim}`, the \
             student has {n_kept}; name the teacher that it was pruned from, or leave this loss \
             out",
            kept.len()
        )))
    }
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
    /// `Recipe` where a named layer does not exist, saying which do, or where what the student kept
    /// of its teacher has to be known and is not.
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>>;

    /// Whether a linear map, learned with the student and shared by all pairs, takes the student's
    /// states to the teacher's width first. It is there only where the widths differ.
    fn projects(&self) -> bool;

    /// The loss at one pair, a scalar: its mean over tokens. Of the teacher's states the pair's
    /// channels alone are shown.
    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor>;
}
