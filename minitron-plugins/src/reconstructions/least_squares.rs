use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::{Fit, ProjectionStats, Reference, StudentEditor, Sweep};
use minitron_core::spec::{At, ParamKind, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

mod solving;

use solving::{USUAL, best_ridge, is_before_dropped, seen_behind, solved};

/// Refits every projection that writes to the residual stream or reads it, front to back, on the
/// stream of the student as reconstructed so far.
///
/// With X [N, C] the inputs of attention's output projection (then of the MLP's second projection)
/// over all N calibration tokens, and R [N, E] what the stream lacks after it, W [E, C] becomes W +
/// ΔW, where ΔW minimises
///
/// ```text
/// ‖R − X·ΔWᵀ‖² + λ·m·‖ΔW‖²        m the mean diagonal of XᵀX
/// ΔW = RᵀX · (XᵀX + λ·m·I)⁻¹       by Cholesky in f64
/// ```
/// The ridge λ pulls towards the kept weights, so ΔW is 0 where nothing is lacking. Biases stay.
/// Where none is given, every projection takes the λ of 1e-4, 1e-3, 1e-2, 1e-1 and 1 that leaves
/// least of R on every fourth batch when fitted to the others; where none leaves less than was
/// lacking before, the projection stays as it is. A text of less than four batches takes 1e-3.
///
/// Aimed at the teacher it repairs dropped channels and layers too: an MLP before dropped layers is
/// fitted to the stream after them.
///
/// For projections that read the stream (queries, keys, values, gate, up, an untied head), X is
/// their input on the student's stream, R what it lacks of the teacher's input Z [N, all channels],
/// and with Δ solved likewise, W becomes W + W_teacher·Δ: the teacher's weight on the best linear
/// guess of Z. A head that is the token table stays the table; of its norm the gain is refitted,
/// and what it adds ([`TiedHead`](minitron_core::reconstruct::TiedHead)).
///
/// The refit of output projections after structured pruning, here joint over the residual stream
/// instead of per projection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeastSquares {
    /// λ, relative to the mean diagonal of XᵀX; above 0 [default: by batches that are held out]
    pub ridge: Option<f64>,
    /// What the stream should be: `teacher`, or `own` for the same layer with all its heads and
    /// neurons.
    pub target: Reference,
    /// Whether projections that read the stream are refitted too, where the target is the teacher.
    pub readers: bool,
    /// Whether projections that write to it are refitted; false where a family norms what they
    /// give.
    pub writers: bool,
    /// Whether a writer before dropped layers changes by one map of what it gives, ΔW = T·W with T
    /// fitted to X·Wᵀ in place of X (ReplaceMe, arXiv 2505.02819), which ΔW contains.
    pub folded: bool,
}

impl Default for LeastSquares {
    fn default() -> Self {
        LeastSquares {
            ridge: None,
            target: Reference::Teacher,
            readers: true,
            writers: true,
            folded: false,
        }
    }
}

minitron_core::plugin! {
    Reconstruction for LeastSquares {
        tag: "least_squares",
        summary: "projections refitted to what the teacher's residual stream holds",
        source: "in the manner of arXiv 2302.04089 (ZipLM), section 3",
    }
}

#[typetag::serde(name = "least_squares")]
impl Reconstruction for LeastSquares {
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        if let Some(ridge) = self
            .ridge
            .filter(|ridge| !(*ridge > 0.0 && ridge.is_finite()))
        {
            return Err(Error::Recipe(format!(
                "least_squares: ridge: expected a number above 0, got {ridge}"
            )));
        }
        if self.writers {
            editor.check_writers(
                "with writers=false those that read the stream are refitted alone",
            )?;
        }
        let sweep = Sweep {
            reference: self.target,
            holds_out: self.ridge.is_none(),
        };
        editor.for_each_projection(sweep, &mut |editor, stats| {
            if !stats.projections.is_writer && !self.readers
                || stats.projections.is_writer && !self.writers
            {
                return Ok(());
            }
            if stats.projections.roles == [Role::HEAD]
                && let Some(head) = editor.tied_head()?
            {
                return refit_tied(
                    editor,
                    &head.refit(&stats.all, self.ridge.unwrap_or(USUAL))?,
                );
            }
            let (mut fit, delta_ec) = match self.folded && is_before_dropped(editor, stats) {
                true => self.solve_folded(editor, stats)?,
                false => self.solve(stats)?,
            };
            fit.entered = self.entered(editor, &fit);
            let is_again = editor
                .fits()
                .iter()
                .any(|before| before.projections == fit.projections && before.ridge.is_some());
            editor.note_fit(fit);
            let Some(delta_ec) = delta_ec else {
                return Ok(());
            };
            // Experts read the same input, each for some tokens.
            let places = match stats.projections.is_writer {
                true => vec![stats.projections.at],
                false => editor.spec().with_units(stats.projections.at),
            };
            for at in places {
                for &role in &stats.projections.roles {
                    if editor.has(at, role, ParamKind::Weight) {
                        refit(editor, (at, role), stats, (&delta_ec, is_again))?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// The final norm of a head that is the token table: its gain, and what it adds.
fn refit_tied(
    editor: &mut StudentEditor,
    (factor_k, added_k): &(Tensor, Option<Tensor>),
) -> Result<()> {
    let (at, role) = (At::Model, Role::FINAL_NORM);
    let gain_k = editor.gain(at, role)?.f_mul(factor_k)?;
    editor.set_gain(at, role, &gain_k)?;
    if let Some(added_k) = added_k {
        let bias_k = editor.read(at, role, ParamKind::Bias)?;
        let bias_k = bias_k.f_mul(factor_k)?.f_add(added_k)?;
        editor.replace(at, role, ParamKind::Bias, &bias_k)?;
    }
    Ok(())
}

fn refit(
    editor: &mut StudentEditor,
    (at, role): (At, Role),
    stats: &ProjectionStats,
    (delta_ec, is_again): (&Tensor, bool),
) -> Result<()> {
    if let Some(from) = stats.projections.from {
        return editor.refit_taken_reader(at, role, delta_ec, from);
    }
    // Δ says what plain readers lack, and those of an earlier sweep have theirs already.
    if !stats.projections.is_writer {
        return editor.refit_reader(at, role, delta_ec, is_again);
    }
    let weight = editor.read(at, role, ParamKind::Weight)?.f_add(delta_ec)?;
    editor.replace(at, role, ParamKind::Weight, &weight)
}

impl LeastSquares {
    /// The same of T, as ΔW = T·W.
    fn solve_folded(
        &self,
        editor: &StudentEditor,
        stats: &ProjectionStats,
    ) -> Result<(Fit, Option<Tensor>)> {
        let (at, role) = (stats.projections.at, stats.projections.roles.first());
        let role = role.copied().unwrap_or(Role::DOWN);
        let weight_ec = editor.read(at, role, ParamKind::Weight)?;
        let given = ProjectionStats {
            projections: stats.projections.clone(),
            all: seen_behind(&stats.all, &weight_ec)?,
            held_out: stats
                .held_out
                .as_ref()
                .map(|held_out| seen_behind(held_out, &weight_ec))
                .transpose()?,
            scale: stats.scale,
        };
        let (fit, map_ee) = self.solve(&given)?;
        let delta_ec = map_ee.map(|map_ee| map_ee.f_matmul(&weight_ec));
        Ok((fit, delta_ec.transpose()?))
    }

    /// What the stream lacks before a writer's part: what the writer before it left.
    fn entered(&self, editor: &StudentEditor, fit: &Fit) -> f64 {
        if self.target == Reference::Own || !fit.projections.is_writer {
            return 0.0;
        }
        let mut earlier = editor.fits().iter().rev();
        let last = earlier.find(|earlier| earlier.projections.is_writer);
        // Of an earlier sweep, the last one is behind.
        let last = last.filter(|last| last.projections.at < fit.projections.at);
        last.map_or(0.0, |last| last.after)
    }

    /// The share of R that no ΔW makes up for, on tokens that it was not fitted to.
    pub(super) fn untold(&self, stats: &ProjectionStats) -> Result<f64> {
        Ok(self.solve(stats)?.0.lacking())
    }

    /// What the fit is worth, and ΔW [E, C]: none where it is zero, or helps nothing that it was
    /// not fitted to.
    fn solve(&self, stats: &ProjectionStats) -> Result<(Fit, Option<Tensor>)> {
        let all = &stats.all;
        let (judge, ridge, left) = match (self.ridge, &stats.held_out) {
            (None, Some(held_out)) => {
                let (ridge, left) = best_ridge(&all.without(held_out)?, held_out)?;
                (held_out, ridge, left)
            }
            (ridge, _) => (all, Some(ridge.unwrap_or(USUAL)), all.r_squared),
        };
        let delta_ec = ridge.map(|ridge| solved(all, ridge)).transpose()?.flatten();
        let left = match (&stats.held_out, &delta_ec) {
            (None, Some(delta_ec)) => all.remaining(delta_ec)?,
            _ => left,
        };
        let n_tokens = judge.n_tokens.max(1) as f64;
        let fit = Fit {
            projections: stats.projections.clone(),
            before: judge.r_squared / n_tokens,
            after: left / n_tokens,
            target: judge.target_squared / n_tokens,
            entered: 0.0,
            ridge: ridge.filter(|_| delta_ec.is_some()),
        };
        Ok((fit, delta_ec))
    }
}
