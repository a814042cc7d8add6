use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::{
    Fit, ProjectionSet, ProjectionStats, Reference, StudentEditor, Sweep,
};
use minitron_core::spec::{At, ParamKind, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod applying;
mod solving;

use applying::{refit, refit_norm, refit_sum_norm};
use solving::{Change, USUAL, best_ridge, is_before_dropped, seen_behind, solved};

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
/// The ridge λ pulls towards the kept weights, so ΔW is 0 where nothing is lacking. Where none is
/// given, every projection takes the λ of 1e-4, 1e-3, 1e-2, 1e-1 and 1 that leaves least of R on
/// every fourth batch when fitted to the others; where none leaves less than was lacking before, or
/// XᵀX + λ·m·I has no Cholesky factor in f64, the projection stays as it is (a given λ is refused).
/// A text of less than four batches takes 1e-3. Where a projection has a bias, X and R are taken
/// less their means over tokens, and b becomes b + mean(R) − ΔW·mean(X).
///
/// Aimed at the teacher it repairs dropped channels and layers too: an MLP before dropped layers is
/// fitted to the stream after them.
///
/// For projections that read the stream (queries, keys, values, gate, up, an untied head), X is
/// their input on the student's stream, R what it lacks of the teacher's input Z [N, all channels],
/// and with Δ solved likewise, W becomes W + W_teacher·Δ: the teacher's weight on the best linear
/// guess of Z; b becomes b + W_teacher·Δb likewise. A head that is the token table stays the table;
/// of its norm the gain is refitted, and what it adds
/// ([`TiedHead`](minitron_core::reconstruct::TiedHead)).
///
/// Where a family norms the stream after every sum, gain and bias of the norm are refitted behind
/// the writer, channel by channel: the line from what it gives to what the teacher's gives.
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
    /// Whether biases are refitted too, where projections have some, and norms after sums.
    pub biases: bool,
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
            biases: true,
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
            norms: self.writers && self.biases,
        };
        editor.for_each_projection(sweep, &mut |editor, stats| self.visit(editor, stats))
    }
}

impl LeastSquares {
    fn visit(&self, editor: &mut StudentEditor, stats: &ProjectionStats) -> Result<()> {
        let is_norm = stats.projections.roles == [Role::SUM_NORM];
        if is_norm {
            return refit_sum_norm(editor, stats);
        }
        let is_asked = match stats.projections.is_writer {
            true => self.writers,
            false => self.readers,
        };
        if !is_asked {
            return Ok(());
        }
        if stats.projections.roles == [Role::HEAD]
            && let Some(head) = editor.tied_head()?
        {
            let refitted = head.refit(&stats.all, self.ridge.unwrap_or(USUAL))?;
            return refit_norm(editor, (At::Model, Role::FINAL_NORM), &refitted);
        }
        let shifts = self.shifts(editor, &stats.projections);
        let (mut fit, change) = match self.folded && is_before_dropped(editor, stats) {
            true => self.solve_folded(editor, stats, shifts)?,
            false => self.solve(stats, shifts)?,
        };
        fit.entered = self.entered(editor, &fit);
        let is_again = editor
            .fits()
            .iter()
            .any(|before| before.projections == fit.projections && before.ridge.is_some());
        editor.note_fit(fit);
        let Some(change) = change else {
            return Ok(());
        };
        for at in editor.places_of(&stats.projections) {
            for &role in &stats.projections.roles {
                if editor.has(at, role, ParamKind::Weight) {
                    refit(editor, (at, role), stats, (&change, is_again))?;
                }
            }
        }
        Ok(())
    }

    /// Whether biases of these projections are refitted: what an expert adds is weighted, its bias
    /// too.
    fn shifts(&self, editor: &StudentEditor, projections: &ProjectionSet) -> bool {
        let is_weighted = projections.is_writer && matches!(projections.at, At::Unit { .. });
        self.biases && !is_weighted && editor.have_biases(projections)
    }

    /// The same of T, as ΔW = T·W.
    fn solve_folded(
        &self,
        editor: &StudentEditor,
        stats: &ProjectionStats,
        shifts: bool,
    ) -> Result<(Fit, Option<Change>)> {
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
            about_means: stats.about_means,
        };
        let (fit, change) = self.solve(&given, shifts)?;
        let folded = change.map(|change| -> Result<Change> {
            let delta_ec = change.delta_ec.f_matmul(&weight_ec)?;
            Ok(Change { delta_ec, ..change })
        });
        Ok((fit, folded.transpose()?))
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

    /// The share of R that no ΔW and Δb make up for, on tokens that they were not fitted to.
    pub(super) fn untold(&self, editor: &StudentEditor, stats: &ProjectionStats) -> Result<f64> {
        let shifts = self.shifts(editor, &stats.projections);
        Ok(self.solve(stats, shifts)?.0.lacking())
    }

    /// What the fit is worth, and ΔW [E, C] with Δb: none where it is zero, or helps nothing
    /// that it was not fitted to.
    fn solve(&self, stats: &ProjectionStats, shifts: bool) -> Result<(Fit, Option<Change>)> {
        let all = &stats.all;
        let (judge, ridge, left) = match (self.ridge, &stats.held_out) {
            (None, Some(held_out)) => {
                let (ridge, left) = best_ridge(&all.without(held_out)?, held_out, shifts)?;
                (held_out, ridge, left)
            }
            (ridge, _) => (all, Some(ridge.unwrap_or(USUAL)), all.r_squared),
        };
        let change = ridge.map(|ridge| solved(all, ridge, shifts));
        let change = change.transpose()?.map(|it| it.or_refused(self.ridge));
        let change = change.transpose()?.flatten();
        let left = match (&stats.held_out, &change) {
            (None, Some(it)) => all.remaining(&it.delta_ec, it.shift_e.as_ref())?,
            (_, None) => judge.r_squared,
            _ => left,
        };
        let n_tokens = judge.n_tokens.max(1) as f64;
        let fit = Fit {
            projections: stats.projections.clone(),
            before: judge.r_squared / n_tokens,
            after: left / n_tokens,
            target: judge.target_squared / n_tokens,
            entered: 0.0,
            ridge: ridge.filter(|_| change.is_some()),
        };
        Ok((fit, change))
    }
}
