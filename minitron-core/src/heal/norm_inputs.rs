//! The teacher's residual stream as its norms see it.

use tch::{Kind, Tensor};
use tracing::debug_span;

use super::joint::rows;
use super::patient::Patient;
use crate::blueprint::{At, Role};
use crate::error::Result;

/// Shown a norm (its place in the student and its role) and its normalised input, x / rms(x) [N, E].
pub type Look<'a> = dyn FnMut(At, Role, &Tensor) -> Result<()> + 'a;

impl Patient<'_> {
    /// Runs the teacher over the calibration text and shows the input of every norm that the student keeps, one batch at a
    /// time, in f32.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn norm_inputs(&self, look: &mut Look) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (mut states, contexts) = self.embedded(false)?;
        let n_layers = self.teacher_blueprint().n_layers();
        let progress = self.calibration()?.progress;
        progress.start("look at norms, layers", n_layers as u64);
        for source_layer in 0..n_layers {
            let _span = debug_span!("layer", layer_idx = source_layer).entered();
            let block = self.teacher_block(source_layer)?;
            let layer_idx = (0..self.n_layers()).find(|&layer_idx| self.source_layer(layer_idx) == source_layer);
            for (part, (at, sublayer)) in self.teacher_blueprint().sublayers(source_layer).enumerate() {
                for (state, context) in states.iter_mut().zip(&contexts) {
                    if let Some(layer_idx) = layer_idx.filter(|_| sublayer.pre.is_some()) {
                        look(at.in_layer(layer_idx), Role::INPUT_NORM, &normalised(&state.now_bte)?)?;
                    }
                    let _ = state.pass(&block, part, context)?;
                }
            }
            progress.advance(1, "");
        }
        for state in &states {
            look(At::Model, Role::FINAL_NORM, &normalised(&state.now_bte)?)?;
        }
        progress.finish();
        Ok(())
    }
}

/// x / rms(x), a row per token.
fn normalised(x_bte: &Tensor) -> Result<Tensor> {
    let x_ne = rows(x_bte)?;
    let square_n = x_ne.f_square()?.f_mean_dim(Some([-1i64].as_slice()), true, Kind::Float)?;
    // Keeps an all-zero token at zero.
    Ok(x_ne.f_mul(&square_n.f_clamp_min(f64::from(f32::MIN_POSITIVE))?.f_rsqrt()?)?)
}
