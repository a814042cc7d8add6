//! What the teacher's norms see.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::{add_to, exact, rows};
use super::shown::ShownPorts;
use super::stream_state::StreamState;
use crate::calibrate::Calibration;
use crate::error::Result;
use crate::model::{Block, MixerContext, Port};
use crate::spec::{At, NormKind, Param, ParamKind, Role, Sublayer};

/// Shown a norm (its place in the student and its role) and its normalised input, x / rms(x) [N,
/// width], of layer norms less its mean; gives tensors and what they are to be added to.
pub type Look<'a, K> = dyn FnMut(At, Role, &Tensor) -> Result<Option<(K, Vec<Tensor>)>> + 'a;

/// Sums over all tokens, in f64.
pub type NormSums<K> = BTreeMap<K, Vec<Tensor>>;

impl StudentEditor<'_> {
    /// Runs the teacher over the calibration text and adds up what `of` makes of the input of every
    /// norm whose width some axis cuts, one batch at a time, in f32: of those before the parts of a
    /// layer and after the last, on what a part adds, and over all queries or keys. `of` names the
    /// sum that its tensors belong to; sums are in f64, on the CPU.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn sum_over_norms<K: Ord + Clone>(&self, of: &mut Look<K>) -> Result<NormSums<K>> {
        let _no_grad = tch::no_grad_guard();
        let text = self.calibration()?;
        let mut batches = self.embedded(self.calibration()?, false)?;
        let n_layers = self.teacher_spec().n_layers();
        text.progress
            .start("look at norms, layers", n_layers as u64);
        let mut sums = Sums(BTreeMap::new());
        for source_layer in 0..n_layers {
            let block = self.teacher_block(source_layer)?;
            let kept = (0..self.n_layers()).find(|&idx| self.source_layer(idx) == source_layer);
            for (round, context) in batches.contexts.iter().enumerate() {
                let mut state = batches.states.before(0, round)?;
                let mut found = Found {
                    of,
                    shown: Vec::new(),
                };
                let parts = self.teacher_spec().places(source_layer).enumerate();
                for (number, (source, part)) in parts {
                    let part = TeacherPart {
                        source,
                        number,
                        part,
                        block: &block,
                    };
                    match kept.filter(|&idx| self.is_there(source.in_layer(idx))) {
                        Some(idx) => self.look_at(&part, idx, &mut state, context, &mut found)?,
                        None => _ = state.pass(&block, number, context)?,
                    }
                }
                batches.states.put(round, &state)?;
                sums.add(&text, round, found.shown)?;
            }
            text.progress.advance(1, "");
        }
        text.progress.finish();
        if let Some(norm) = self.teacher_spec().options.final_norm {
            for round in 0..batches.states.len() {
                let state = batches.states.before(0, round)?;
                let z_ne = normalised(&state.now_bte, norm.kind)?;
                let shown = of(At::Model, Role::FINAL_NORM, &z_ne)?;
                sums.add(&text, round, shown.into_iter().collect())?;
            }
        }
        Ok(sums.0)
    }

    /// Whether the student has a part at a place.
    pub(super) fn is_there(&self, at: At) -> bool {
        let layers = at.layer().into_iter();
        let mut parts = layers.flat_map(|layer| self.spec().sublayers(layer));
        parts.any(|(place, _)| place == at)
    }

    /// Moves the teacher past one part of a layer that the student keeps.
    fn look_at<K>(
        &self,
        of_teacher: &TeacherPart,
        layer_idx: usize,
        state: &mut StreamState,
        context: &MixerContext,
        found: &mut Found<K>,
    ) -> Result<()> {
        let TeacherPart {
            source,
            number,
            part,
            block,
        } = *of_teacher;
        let at = source.in_layer(layer_idx);
        let over_units = part.mixer.norms_over_units();
        let wanted = over_units
            .iter()
            .map(|(_, port)| *port)
            .chain([Port::OUTPUT])
            .collect();
        let mut ports = ShownPorts {
            at: source,
            wanted,
            seen: BTreeMap::new(),
        };
        if let Some(norm) = part.pre {
            let x_bte = state.read(part.reads_layer_input, number);
            found.look(at, Role::INPUT_NORM, &normalised(x_bte, norm.kind)?)?;
        }
        let _ = state.pass_shown(block, number, context, &mut ports)?;
        if let (Some(norm), Some(output)) = (part.post, ports.seen.get(&Port::OUTPUT)) {
            found.look(at, Role::OUTPUT_NORM, &normalised(output, norm.kind)?)?;
        }
        for (role, port) in over_units {
            let param = self.teacher_spec().find(source, role, ParamKind::Weight);
            if let (Some(normed), Some(param)) = (ports.seen.get(&port), param) {
                found.look(at, role, &self.without_gain(normed, param)?)?;
            }
        }
        Ok(())
    }

    /// What leaves a norm, without its gain; behind a gain of 0 nothing is seen.
    fn without_gain(&self, normed: &Tensor, param: &Param) -> Result<Tensor> {
        let gain = self
            .teacher()
            .read(&param.name())?
            .f_to_kind(Kind::Float)?
            .f_to_device(normed.device())?;
        let norm = self.teacher_spec().norm_of(param);
        let less_one = norm.is_some_and(|norm| norm.kind.stores_gain_less_one());
        let gain = gain.f_add_scalar(if less_one { 1.0 } else { 0.0 })?;
        let gain = gain.f_where_scalarother(&gain.f_ne(0.0)?, 1.0)?;
        // Heads are rows of their own where each has its norm.
        let rows = normed
            .f_to_kind(Kind::Float)?
            .f_reshape([-1, gain.size1()?])?;
        Ok(rows.f_div(&gain)?)
    }
}

/// A part of a layer of the teacher.
struct TeacherPart<'a> {
    source: At,
    number: usize,
    part: &'a Sublayer,
    block: &'a Block,
}

/// What was made of the norms that one batch passed in a layer.
struct Found<'f, 'l, K> {
    of: &'f mut Look<'l, K>,
    shown: Vec<(K, Vec<Tensor>)>,
}

impl<K> Found<'_, '_, K> {
    fn look(&mut self, at: At, role: Role, z: &Tensor) -> Result<()> {
        self.shown.extend((self.of)(at, role, z)?);
        Ok(())
    }
}

struct Sums<K>(NormSums<K>);

impl<K: Ord + Clone> Sums<K> {
    fn add(
        &mut self,
        text: &Calibration,
        round: usize,
        shown: Vec<(K, Vec<Tensor>)>,
    ) -> Result<()> {
        let (keys, tensors): (Vec<(K, usize)>, Vec<Vec<Tensor>>) = shown
            .into_iter()
            .map(|(key, tensors)| ((key, tensors.len()), tensors))
            .unzip();
        let own = tensors.into_iter().flatten().collect();
        text.in_order(round, own, &mut |_, mut given| {
            for (key, n) in &keys {
                let (of_key, rest) = given.split_at_checked(*n).unwrap_or_default();
                given = rest;
                add_all(self.0.entry(key.clone()).or_default(), of_key)?;
            }
            Ok(())
        })
    }
}

fn add_all(sums: &mut Vec<Tensor>, given: &[Tensor]) -> Result<()> {
    for (idx, tensor) in given.iter().enumerate() {
        match sums.get_mut(idx) {
            Some(sum) => add_to(sum, tensor)?,
            None => sums.push(exact(tensor)?.copy()),
        }
    }
    Ok(())
}

/// x / rms(x), a row per token; of layer norms, without its mean over channels.
fn normalised(x_bte: &Tensor, kind: NormKind) -> Result<Tensor> {
    let mut x_ne = rows(x_bte)?;
    if !kind.is_rms() {
        let mean_n = x_ne.f_mean_dim(Some([-1i64].as_slice()), true, Kind::Float)?;
        x_ne = x_ne.f_sub(&mean_n)?;
    }
    let square_n = x_ne
        .f_square()?
        .f_mean_dim(Some([-1i64].as_slice()), true, Kind::Float)?;
    // Keeps an all-zero token at zero.
    Ok(x_ne.f_mul(
        &square_n
            .f_clamp_min(f64::from(f32::MIN_POSITIVE))?
            .f_rsqrt()?,
    )?)
}
