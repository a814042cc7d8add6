//! The teacher's residual stream as its norms see it.

use tch::{Kind, Tensor};
use tracing::debug_span;

use super::joint::{Part, rows};
use super::patient::Patient;
use crate::blueprint::Role;
use crate::error::Result;

/// Shown a norm (its role and the student's layer) and its normalised input, x / rms(x) [N, E].
pub type Look<'a> = dyn FnMut(Role, Option<usize>, &Tensor) -> Result<()> + 'a;

impl Patient<'_> {
    /// Runs the teacher over the calibration text and shows the input of every norm that the student keeps, one batch at a
    /// time, in f32.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text.
    pub fn norm_inputs(&self, look: &mut Look) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (mut streams, layouts) = self.embedded(false)?;
        let n_layers = self.teacher_blueprint().n_layers();
        let progress = self.calibration()?.progress;
        progress.start("look at norms, layers", n_layers as u64);
        for source_layer in 0..n_layers {
            let _span = debug_span!("layer", layer_idx = source_layer).entered();
            let block = self.teacher_block(source_layer)?;
            let layer_idx = (0..self.n_layers()).find(|&layer_idx| self.source_layer(layer_idx) == source_layer);
            for (part, norm) in [(Part::Attention, Role::AttentionNorm), (Part::Mlp, Role::MlpNorm)] {
                for (x_bte, layout) in streams.iter_mut().zip(&layouts) {
                    if layer_idx.is_some() {
                        look(norm, layer_idx, &normalised(x_bte)?)?;
                    }
                    *x_bte = part.forward(&block, x_bte, layout)?;
                }
            }
            progress.advance(1, "");
        }
        for x_bte in &streams {
            look(Role::FinalNorm, None, &normalised(x_bte)?)?;
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
