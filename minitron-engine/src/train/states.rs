//! Losses on states inside the models, and the linear maps learned with them. E student's width, F
//! teacher's.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::pass::{at_least, plus};
use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Parameter, Site};
use minitron_core::random::SplitMix;
use minitron_core::reconstruct::KeptUnits;
use minitron_core::spec::{HIDDEN, ModelSpec};

/// How much a loss on states counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weight {
    /// A fixed factor.
    Fixed(f64),
    /// This share of the losses that compare with the teacher's logits, in every step: the factor
    /// `share · Σ w·L_logits / L_states`, which carries no gradient (arXiv 2407.14679, section 3:
    /// α, set so that α·L_is is as large as L_logits; L_CLM does not count). Several such terms
    /// share it evenly. A step of several passes finds its values in a round without gradient
    /// first.
    Dynamic(f64),
}

/// One loss on states, and what it compares.
#[derive(Debug)]
pub struct StateTerm {
    /// Name in metrics.
    pub label: String,
    /// Its factor.
    pub weight: Weight,
    loss: Box<dyn StateLoss>,
    pairs: Vec<ComparedPair>,
    lift: Option<Parameter>,
    /// The student's, the teacher's.
    heads: [HeadCounts; 2],
}

/// Two places, with the channels that are shown where not all are.
#[derive(Debug)]
struct ComparedPair {
    student: Site,
    teacher: Site,
    /// The student's, the teacher's.
    channels_k: [Option<Tensor>; 2],
}

impl ComparedPair {
    fn of(pair: SitePair, device: Device) -> Result<Self> {
        let tensor = |channels: Option<Vec<usize>>| -> Result<Option<Tensor>> {
            let Some(channels) = channels else {
                return Ok(None);
            };
            let channels: Vec<i64> = channels.iter().map(|&channel| channel as i64).collect();
            Ok(Some(Tensor::f_from_slice(&channels)?.f_to_device(device)?))
        };
        Ok(ComparedPair {
            student: pair.student,
            teacher: pair.teacher,
            channels_k: [tensor(pair.student_channels)?, tensor(pair.channels)?],
        })
    }
}

/// What a loss is shown of states.
fn shown(x_btc: &Tensor, channels_k: Option<&Tensor>) -> Result<Tensor> {
    match channels_k {
        Some(channels_k) => SitePair::pick(x_btc, channels_k),
        None => Ok(x_btc.shallow_clone()),
    }
}

/// What a loss is told of a model besides its states.
#[derive(Debug, Clone, Copy)]
struct HeadCounts {
    head_dim: usize,
    causal: bool,
}

impl HeadCounts {
    fn of(spec: &ModelSpec) -> Self {
        HeadCounts {
            head_dim: spec.head_dim(),
            causal: spec.options.causal,
        }
    }

    fn states<'a>(self, x_btc: &'a Tensor, attention_mask_bt: Option<&'a Tensor>) -> States<'a> {
        States {
            x_btc,
            attention_mask_bt,
            causal: self.causal,
            head_dim: self.head_dim,
        }
    }
}

/// What a loss on states begins with, and where its learned map lives.
#[derive(Debug, Clone, Copy)]
pub struct TermStart<'a> {
    /// Where the student is.
    pub device: Device,
    /// What it computes in.
    pub kind: Kind,
    /// The teacher's units that the student kept, where they are known. A learned map then begins
    /// by putting each channel back in its place.
    pub kept: Option<&'a KeptUnits>,
    /// Of a map that begins at random.
    pub seed: u64,
}

impl StateTerm {
    /// A loss between models of these shapes.
    ///
    /// # Errors
    /// `Recipe` where the loss names layers that are not there, `Plugin` where it compares nothing.
    pub fn new(
        label: String,
        weight: Weight,
        loss: Box<dyn StateLoss>,
        student: &ModelSpec,
        teacher: &ModelSpec,
        start: TermStart,
    ) -> Result<Self> {
        let models = ModelPair {
            student,
            teacher,
            kept: start.kept,
        };
        let pairs = loss.pairs(&models)?.into_iter();
        let pairs = pairs.map(|pair| ComparedPair::of(pair, start.device));
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        if pairs.is_empty() {
            let message = "compares no pair of places; expected at least one".to_owned();
            return Err(Error::Plugin {
                tag: label,
                origin: "state_loss".into(),
                message,
            });
        }
        let (n_student, n_teacher) = (student.dim(HIDDEN)?.size, teacher.dim(HIDDEN)?.size);
        let lift = match loss.projects() && n_student != n_teacher {
            true => Some(lift(&label, n_student, n_teacher, start)?),
            false => None,
        };
        Ok(StateTerm {
            label,
            weight,
            loss,
            pairs,
            lift,
            heads: [student, teacher].map(HeadCounts::of),
        })
    }

    /// Places in the student.
    pub fn student_sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.pairs.iter().map(|pair| pair.student)
    }

    /// Places in the teacher.
    pub fn teacher_sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.pairs.iter().map(|pair| pair.teacher)
    }

    /// Whether its factor follows from the values of the step.
    pub(super) fn is_dynamic(&self) -> bool {
        matches!(self.weight, Weight::Dynamic(_))
    }

    /// What a value of `mean` is multiplied by; a dynamic weight makes it as large as `reference`.
    pub(super) fn factor(&self, reference: f64, mean: f64) -> f64 {
        match self.weight {
            Weight::Fixed(factor) => factor,
            Weight::Dynamic(_) if mean <= 0.0 => 0.0,
            Weight::Dynamic(share) => share * reference / mean,
        }
    }

    /// The learned map, where widths differ.
    pub fn lift(&self) -> Option<&Parameter> {
        self.lift.as_ref()
    }

    /// Mean over the pairs, a scalar with gradient.
    pub(super) fn value<'t>(
        &self,
        student: &BTreeMap<Site, Tensor>,
        teacher: impl Fn(Site) -> Result<&'t Tensor>,
        attention_mask_bt: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for pair in &self.pairs {
            let states = student.get(&pair.student).ok_or_else(|| {
                self.error(format!("{:?} is nowhere in the student", pair.student))
            })?;
            let lifted = self
                .lift
                .as_ref()
                .map(|lift| states.f_linear(&lift.tensor, None::<&Tensor>))
                .transpose()?;
            let [own_k, other_k] = &pair.channels_k;
            let x_btc = &shown(lifted.as_ref().unwrap_or(states), own_k.as_ref())?;
            let [ours, theirs] = self.heads;
            let theirs_btc = shown(teacher(pair.teacher)?, other_k.as_ref())?;
            let theirs_btc = at_least(theirs_btc, x_btc.f_kind()?)?;
            let value = self.loss.loss(
                &ours.states(x_btc, attention_mask_bt),
                &theirs.states(&theirs_btc, attention_mask_bt),
            )?;
            if value.numel() != 1 {
                return Err(self.error(format!(
                    "expected one number, got a tensor of {:?}",
                    value.size()
                )));
            }
            let value = value.f_reshape(&[] as &[i64])?;
            total = Some(plus(total, value)?);
        }
        let total = total.ok_or_else(|| self.error("compares nothing".into()))?;
        Ok(total.f_div_scalar(self.pairs.len() as f64)?)
    }

    fn error(&self, message: String) -> Error {
        Error::Plugin {
            tag: self.label.clone(),
            origin: "state_loss".into(),
            message,
        }
    }
}

/// [F, E]: kept channels back in their places, or N(0, 1/E).
fn lift(label: &str, n_student: usize, n_teacher: usize, start: TermStart) -> Result<Parameter> {
    let mut values = vec![0f32; n_student * n_teacher];
    let kept = start.kept.and_then(|kept| kept.plan.kept.get(HIDDEN));
    match kept
        .filter(|kept| kept.len() == n_student && kept.iter().all(|&channel| channel < n_teacher))
    {
        Some(kept) => {
            for (channel, place) in kept.iter().enumerate() {
                if let Some(value) = values.get_mut(place * n_student + channel) {
                    *value = 1.0;
                }
            }
        }
        None => {
            let mut random = SplitMix::new(start.seed);
            let std = 1.0 / (n_student as f64).sqrt();
            values
                .iter_mut()
                .for_each(|value| *value = (std * random.normal()) as f32);
        }
    }
    let weight_fe = Tensor::f_from_slice(&values)?.f_view([n_teacher as i64, n_student as i64])?;
    Parameter::learned(
        format!("lift.{label}"),
        &weight_fe,
        start.device,
        start.kind,
    )
}
