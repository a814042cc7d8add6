//! Biases of projections: which have some, and those of what reads the residual stream, refitted.

use tch::Tensor;

use super::editor::StudentEditor;
use super::projections::ProjectionSet;
use super::weights::{laid_out, laid_out_rows, spans};
use crate::checkpoint::TensorSource;
use crate::error::Result;
use crate::prune::PrunedView;
use crate::spec::{At, HIDDEN, Param, ParamKind, Role};

impl StudentEditor<'_> {
    /// Whether all of these projections of the student that there are have biases, and there are
    /// some.
    pub fn have_biases(&self, projections: &ProjectionSet) -> bool {
        let places = self.places_of(projections);
        let roles = &projections.roles;
        let all = places
            .iter()
            .flat_map(|&at| roles.iter().map(move |&role| (at, role)));
        let all = all.filter(|&(at, role)| self.has(at, role, ParamKind::Weight));
        let mut all = all.peekable();
        all.peek().is_some() && all.all(|(at, role)| self.has(at, role, ParamKind::Bias))
    }

    /// Where these projections are: experts read the same input, each for some tokens.
    pub fn places_of(&self, projections: &ProjectionSet) -> Vec<At> {
        match projections.is_writer {
            true => vec![projections.at],
            false => self.spec().with_units(projections.at),
        }
    }

    /// Shifts the bias of a projection that reads the stream by what its input lacks on average:
    /// b + W_all·s, with s over all the teacher's channels and W_all as
    /// [`refit_reader`](Self::refit_reader) has it; b is the bias as it is, or as it was pruned
    /// where it was shifted before.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn shift_reader(
        &mut self,
        at: At,
        role: Role,
        shift_e: &Tensor,
        is_again: bool,
    ) -> Result<()> {
        let weight = self.param(at, role, ParamKind::Weight)?;
        let bias = self.param(at, role, ParamKind::Bias)?.clone();
        let mut plan = self.plan().clone();
        plan.kept.remove(HIDDEN);
        let (teacher, spec) = (self.teacher(), self.pruned_spec());
        let added = times(&PrunedView::new(teacher, spec, &plan)?, weight, shift_e)?;
        let factor = self.factor_of(&bias.name());
        let before = match is_again {
            true => laid_out(&PrunedView::new(teacher, spec, self.plan())?, &bias)?
                .f_mul_scalar(factor)?,
            false => self.read(at, role, ParamKind::Bias)?,
        };
        let shifted = before.f_add(&added.f_mul_scalar(factor)?)?;
        let shifted = self.without_taken(&bias, shifted)?;
        self.replace(at, role, ParamKind::Bias, &shifted)
    }

    /// The same for units of a dropped layer alone: their biases become b_from + W_from_all·s.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn shift_taken_reader(
        &mut self,
        at: At,
        role: Role,
        shift_e: &Tensor,
        from: usize,
    ) -> Result<()> {
        let weight = self.param(at, role, ParamKind::Weight)?.clone();
        let bias = self.param(at, role, ParamKind::Bias)?.clone();
        for (_, places, donor) in self.places_taken(&bias, from)? {
            let mut all = donor.clone();
            all.kept.remove(HIDDEN);
            let (teacher, spec) = (self.teacher(), self.pruned_spec());
            let pruned = laid_out(&PrunedView::new(teacher, spec, &donor)?, &bias)?;
            let added = times(&PrunedView::new(teacher, spec, &all)?, &weight, shift_e)?;
            let shifted = pruned.f_add(&added)?;
            let shifted = shifted.f_mul_scalar(self.factor_of(&bias.name()))?;
            let own = self.read(at, role, ParamKind::Bias)?;
            let put = own.f_index_copy(0, &Tensor::f_from_slice(&places)?, &shifted)?;
            self.replace(at, role, ParamKind::Bias, &put)?;
        }
        Ok(())
    }
}

/// W·x [out], or [experts, out], some rows at a time: a head is large.
fn times(source: &dyn TensorSource, param: &Param, x_e: &Tensor) -> Result<Tensor> {
    let rows = spans(source, param).into_iter();
    let parts = rows.map(|rows| Ok(laid_out_rows(source, param, rows)?.f_matmul(x_e)?));
    Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}
