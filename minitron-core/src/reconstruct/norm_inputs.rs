//! What the teacher's norms see.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::rows;
use super::stream_state::StreamState;
use crate::error::{Error, Result};
use crate::model::{Block, InMemory, LayerStore, MixerContext, Port, Site, Tap, Walk, run_layers};
use crate::progress::Progress;
use crate::spec::{At, Param, ParamKind, Role, Sublayer};

/// Shown a norm (its place in the student and its role) and its normalised input, x / rms(x) [N,
/// width].
pub type Look<'a> = dyn FnMut(At, Role, &Tensor) -> Result<()> + 'a;

/// Remembers what some ports of one part show.
struct NormInputs {
    at: At,
    wanted: Vec<Port>,
    seen: BTreeMap<Port, Tensor>,
}

impl Tap for NormInputs {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Inside { at, port } if at == self.at && self.wanted.contains(&port))
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        if let Site::Inside { port, .. } = site {
            self.seen.insert(port, x.shallow_clone());
        }
        Ok(())
    }
}

impl StudentEditor<'_> {
    /// Runs the teacher over the calibration text and shows the input of every norm on the residual
    /// stream that the student keeps, one batch at a time, in f32.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn norm_inputs(&self, look: &mut Look) -> Result<()> {
        self.teachers_norms(&mut |at, role, z| match role {
            Role::INPUT_NORM | Role::FINAL_NORM => look(at, role, z),
            _ => Ok(()),
        })
    }

    /// The same of every norm whose width some axis cuts: also those on what a part adds, and those
    /// over all queries or keys.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn teachers_norms(&self, look: &mut Look) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (states, contexts) = self.embedded(false)?;
        let (progress, n_batches) = (self.calibration()?.progress, states.len());
        let n_steps = self.teacher_spec().n_layers() * n_batches;
        progress.start("look at norms, layers x batches", n_steps as u64);
        let (source, spec) = (self.teacher(), self.teacher_spec());
        let store = LayerStore::Stored {
            source,
            spec,
            options: self.load_options(),
        };
        let mut looking = Looking {
            editor: self,
            states: states.into_iter(),
            contexts,
            look,
            progress,
        };
        run_layers(&store, n_batches, &mut looking, &mut InMemory::default())?;
        progress.finish();
        Ok(())
    }

    /// Moves the teacher past one part of a layer that the student keeps.
    #[allow(
        clippy::too_many_arguments,
        reason = "a part, where it stands, and what goes through it"
    )]
    fn look_at_part(
        &self,
        source: At,
        layer_idx: usize,
        part: &Sublayer,
        (block, number): (&Block, usize),
        state: &mut StreamState,
        context: &MixerContext,
        look: &mut Look,
    ) -> Result<()> {
        let at = source.in_layer(layer_idx);
        let over_units = part.mixer.norms_over_units();
        let wanted = over_units
            .iter()
            .map(|(_, port)| *port)
            .chain([Port::OUTPUT])
            .collect();
        let mut ports = NormInputs {
            at: source,
            wanted,
            seen: BTreeMap::new(),
        };
        if part.pre.is_some() {
            look(
                at,
                Role::INPUT_NORM,
                &normalised(state.read(part.reads_layer_input, number))?,
            )?;
        }
        let _ = state.pass_shown(block, number, context, &mut ports)?;
        if let Some(output) = ports
            .seen
            .get(&Port::OUTPUT)
            .filter(|_| part.post.is_some())
        {
            look(at, Role::OUTPUT_NORM, &normalised(output)?)?;
        }
        for (role, port) in over_units {
            let param = self.teacher_spec().find(source, role, ParamKind::Weight);
            if let (Some(normed), Some(param)) = (ports.seen.get(&port), param) {
                look(at, role, &self.without_gain(normed, param)?)?;
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

/// The teacher's batches, which are embedded already.
struct Looking<'a, 'p, 'l> {
    editor: &'a StudentEditor<'p>,
    states: std::vec::IntoIter<StreamState>,
    contexts: Vec<MixerContext>,
    look: &'a mut Look<'l>,
    progress: &'a dyn Progress,
}

impl Walk for Looking<'_, '_, '_> {
    type State = StreamState;

    fn enter(&mut self, batch: usize) -> Result<StreamState> {
        self.states
            .next()
            .ok_or_else(|| Error::Internal(format!("there is no batch {batch}")))
    }

    fn layer(
        &mut self,
        batch: usize,
        source_layer: usize,
        block: &Block,
        state: &mut StreamState,
    ) -> Result<()> {
        let editor = self.editor;
        let context = self.contexts.get(batch);
        let context =
            context.ok_or_else(|| Error::Internal(format!("there is no batch {batch}")))?;
        let layer_idx = (0..editor.n_layers())
            .find(|&layer_idx| editor.source_layer(layer_idx) == source_layer);
        for (number, (at, part)) in editor.teacher_spec().sublayers(source_layer).enumerate() {
            match layer_idx {
                Some(layer_idx) => editor.look_at_part(
                    at,
                    layer_idx,
                    part,
                    (block, number),
                    state,
                    context,
                    self.look,
                )?,
                None => _ = state.pass(block, number, context)?,
            }
        }
        self.progress.advance(1, "");
        Ok(())
    }

    fn leave(&mut self, _batch: usize, state: StreamState) -> Result<()> {
        match self.editor.teacher_spec().options.final_norm {
            Some(_) => (self.look)(At::Model, Role::FINAL_NORM, &normalised(&state.now_bte)?),
            None => Ok(()),
        }
    }
}

/// x / rms(x), a row per token.
fn normalised(x_bte: &Tensor) -> Result<Tensor> {
    let x_ne = rows(x_bte)?;
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
