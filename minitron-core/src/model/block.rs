//! One layer: its sublayers around the residual stream.

use tch::Tensor;

use super::LoadOptions;
use super::weights::Weights;
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};
use crate::mixers::RunMixer;
use crate::nn::{MixerContext, MixerState, NormLayer, PartWeights, PortTap, Tap, show};
use crate::spec::{At, ModelSpec, Norm, Port, Role, Site};

/// One layer, which can be loaded and run on its own.
#[derive(Debug)]
pub struct Block {
    layer_idx: usize,
    parts: Vec<RunPart>,
}

/// A sublayer with its weights: y = settle(sum), sum = x + scale · post(mixer(pre(r))).
#[derive(Debug)]
struct RunPart {
    at: At,
    /// None where the part is not there.
    mixer: Option<Box<dyn RunMixer>>,
    pre: Option<NormLayer>,
    post: Option<NormLayer>,
    after_sum: Option<NormLayer>,
    scale: f64,
    reads_layer_input: bool,
}

/// The residual stream before a sublayer, and what entered the layer.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// Before the sublayer [B, T, E].
    pub now_bte: &'a Tensor,
    /// Before the layer [B, T, E].
    pub entered_bte: &'a Tensor,
}

impl Block {
    /// Reads the weights of one layer.
    ///
    /// # Errors
    /// As reading a file does.
    pub fn open(
        source: &dyn TensorSource,
        spec: &ModelSpec,
        layer_idx: usize,
        options: LoadOptions,
    ) -> Result<Self> {
        Self::load(&mut Weights::new(source, spec, options), layer_idx)
    }

    pub(super) fn load(weights: &mut Weights, layer_idx: usize) -> Result<Self> {
        let mut parts = Vec::new();
        for (at, part) in weights.spec.places(layer_idx) {
            let mut weights = weights.part(at);
            let is_there = !part.mixer.is_absent();
            parts.push(RunPart {
                at,
                pre: optional_norm(&mut weights, Role::INPUT_NORM, part.pre)?,
                after_sum: optional_norm(&mut weights, Role::SUM_NORM, part.after_sum)?,
                mixer: is_there
                    .then(|| part.mixer.load(&mut weights))
                    .transpose()?,
                post: optional_norm(&mut weights, Role::OUTPUT_NORM, part.post)?,
                scale: part.scale,
                reads_layer_input: part.reads_layer_input,
            });
        }
        Ok(Block { layer_idx, parts })
    }

    /// x [B, T, E] to [B, T, E].
    ///
    /// # Errors
    /// As mixers do.
    pub fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        tap: &mut dyn Tap,
        mut states: Option<&mut [MixerState]>,
    ) -> Result<Tensor> {
        let mut now_bte = x_bte.shallow_clone();
        for (idx, part) in self.parts.iter().enumerate() {
            let stream = Stream {
                now_bte: &now_bte,
                entered_bte: x_bte,
            };
            let state = states.as_mut().and_then(|states| states.get_mut(idx));
            let sum_bte = part.added(stream, context, tap, state)?;
            now_bte = part.settle(sum_bte)?;
        }
        Ok(now_bte)
    }

    /// The same, with the residual stream before and after it shown.
    ///
    /// # Errors
    /// As mixers do.
    pub fn shown(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        tap: &mut dyn Tap,
        states: Option<&mut [MixerState]>,
    ) -> Result<Tensor> {
        show(tap, Site::LayerInput(self.layer_idx), x_bte)?;
        let output_bte = self.forward(x_bte, context, tap, states)?;
        show(tap, Site::LayerOutput(self.layer_idx), &output_bte)?;
        Ok(output_bte)
    }

    /// Sublayers, with the places of those that are not there.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// What a sublayer's mixer reads of the stream.
    ///
    /// # Errors
    /// `Internal` where there is no such sublayer.
    pub fn input(&self, part: usize, stream: Stream) -> Result<Tensor> {
        self.part(part)?.input(stream)
    }

    /// The stream with what a sublayer adds to it.
    ///
    /// # Errors
    /// `Internal` where there is no such sublayer.
    pub fn added(
        &self,
        part: usize,
        stream: Stream,
        context: &MixerContext,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        self.part(part)?.added(stream, context, tap, None)
    }

    /// What leaves a sublayer for that sum.
    ///
    /// # Errors
    /// `Internal` where there is no such sublayer.
    pub fn settle(&self, part: usize, sum_bte: Tensor) -> Result<Tensor> {
        self.part(part)?.settle(sum_bte)
    }

    fn part(&self, part: usize) -> Result<&RunPart> {
        self.parts
            .get(part)
            .ok_or_else(|| Error::Internal(format!("layer {} has no part {part}", self.layer_idx)))
    }
}

fn optional_norm(
    weights: &mut PartWeights,
    role: Role,
    norm: Option<Norm>,
) -> Result<Option<NormLayer>> {
    norm.map(|norm| weights.norm(role, norm)).transpose()
}

impl RunPart {
    fn input(&self, stream: Stream) -> Result<Tensor> {
        let read_bte = if self.reads_layer_input {
            stream.entered_bte
        } else {
            stream.now_bte
        };
        normed(self.pre.as_ref(), read_bte)
    }

    fn added(
        &self,
        stream: Stream,
        context: &MixerContext,
        tap: &mut dyn Tap,
        state: Option<&mut MixerState>,
    ) -> Result<Tensor> {
        let Some(mixer) = &self.mixer else {
            return Ok(stream.now_bte.shallow_clone());
        };
        let mut tap = PortTap::new(self.at, tap);
        tap.show(Port::STREAM, stream.now_bte)?;
        let input_bte = self.input(stream)?;
        tap.show(Port::INPUT, &input_bte)?;
        let output_bte = mixer.forward(&input_bte, context, state, &mut tap)?;
        tap.show(Port::OUTPUT, &output_bte)?;
        let added_bte = normed(self.post.as_ref(), &output_bte)?;
        let added_bte = if self.scale == 1.0 {
            added_bte
        } else {
            added_bte.f_mul_scalar(self.scale)?
        };
        Ok(stream.now_bte.f_add(&added_bte)?)
    }

    fn settle(&self, sum_bte: Tensor) -> Result<Tensor> {
        match &self.after_sum {
            Some(norm) => norm.forward(&sum_bte),
            None => Ok(sum_bte),
        }
    }
}

fn normed(norm: Option<&NormLayer>, x_bte: &Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(x_bte),
        None => Ok(x_bte.shallow_clone()),
    }
}
