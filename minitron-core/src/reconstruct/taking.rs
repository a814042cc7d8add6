//! Units of dropped layers in the place of a kept layer's own.

use tch::{Kind, Tensor};

use super::editor::StudentEditor;
use super::taken::{KeptUnits, TakenUnits};
use super::weights::{laid_out, not_in_student};
use crate::checkpoint::{TensorSource, kind_of};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::prune::PrunedView;
use crate::spec::{At, DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, Param, ParamKind, ROPE_PAIRS, Role};
use crate::spec::{Sublayer, dim_of_layer, split_dim};

/// Kinds of which a part's units may be taken: each adds to the stream what it adds by itself.
const TAKEN_KINDS: [&str; 4] = [MLP, HEADS, KV_HEADS, ROPE_PAIRS];

impl StudentEditor<'_> {
    /// Units that were taken from dropped layers so far.
    pub fn taken(&self) -> &[TakenUnits] {
        &self.taken
    }

    /// What the student has of its teacher's units; components of a turned stream are no channels
    /// of the teacher, and left out.
    pub fn kept_units(&self) -> KeptUnits {
        let mut plan = self.plan().clone();
        if self.hidden_basis().is_some() {
            plan.kept.remove(HIDDEN);
        }
        KeptUnits {
            plan,
            taken: self.taken.clone(),
        }
    }

    /// Whether a layer of the student took units of dropped ones.
    pub(super) fn has_taken(&self, layer: usize) -> bool {
        self.taken.iter().any(|taken| taken.layer == layer)
    }

    /// The dropped layers that a part of the student took units of.
    pub(super) fn taken_from(&self, at: At) -> Vec<usize> {
        self.taken_at(at).map(|taken| taken.from).collect()
    }

    fn taken_at(&self, at: At) -> impl Iterator<Item = &TakenUnits> {
        let is_here = move |taken: &&TakenUnits| at.place() == Some((taken.layer, taken.part));
        self.taken.iter().filter(is_here)
    }

    /// Whether a part of the student can take units of the same part of a dropped layer: both
    /// compute alike, without norms over what a unit is made of, and every unit adds to the stream
    /// by itself; where sums are normed, the part is the last of its layer. `from` is one of the
    /// layers that the student's [stands for](StudentEditor::stands_for).
    pub fn can_take(&self, at: At, from: usize) -> bool {
        let Some((layer, number)) = at.place() else {
            return false;
        };
        let layers = self.stands_for(layer);
        let of = |layer| self.teacher_spec().places(layer).nth(number);
        let (Some((_, own)), Some((_, other))) = (of(layers.start), of(from)) else {
            return false;
        };
        let is_written = |at: At, role| self.spec().find(at, role, ParamKind::Weight).is_some();
        let writer = own.mixer.ports().writer;
        let is_last = number + 1 == self.teacher_spec().places(layers.start).count();
        self.inputs.only.is_none()
            && layers.contains(&from)
            && from != layers.start
            && (self.adds_up(&layers) || is_last && self.are_alike(&layers))
            && is_alike(own, other)
            && own.post.is_none()
            && own.mixer.norms().is_empty()
            && own.mixer.norms_over_units().is_empty()
            && writer.is_some_and(|writer| is_written(at, writer.role))
            && own
                .mixer
                .observed()
                .iter()
                .all(|seen| TAKEN_KINDS.contains(&seen.kind))
    }

    /// Puts units of a dropped layer in the place of a part's own: what reads the stream for them,
    /// and what they write, as the teacher has it. Biases of what writes to the stream add up. What
    /// follows knows where they are from: [`for_each_projection`](Self::for_each_projection) shows
    /// what reads the stream for them by itself, with what that lacks of the dropped layer's input.
    ///
    /// # Errors
    /// `Plugin` where units are taken that [cannot be](StudentEditor::can_take), or places and
    /// units are not as many.
    pub fn take_units(&mut self, taken: TakenUnits) -> Result<()> {
        let at = At::Sublayer {
            layer: taken.layer,
            sublayer: taken.part,
        };
        let mut replaced = taken.units.values();
        let is_paired = replaced.all(|it| it.places.len() == it.units.len());
        if !self.can_take(at, taken.from) || !is_paired {
            return Err(self.broken(format!("{at} cannot take {taken:?}")));
        }
        let donor = self.donor(&taken);
        let params = self.spec().params_in(Some(taken.layer));
        let params: Vec<Param> = params.filter(|param| param.at == at).cloned().collect();
        let writer = self.same_part(at, taken.from)?.mixer.ports().writer;
        for param in &params {
            let (role, kind) = (param.role, param.kind);
            let is_added =
                kind == ParamKind::Bias && writer.is_some_and(|writer| writer.role == role);
            let side = side_of(param, &taken);
            let view = PrunedView::new(self.teacher(), self.pruned_spec(), &donor)?;
            let put = match side {
                Some(side) => self.with_taken(param, side, &view, &taken)?,
                None if is_added => self.read(at, role, kind)?.f_add(&laid_out(&view, param)?)?,
                None => continue,
            };
            drop(view);
            self.replace(at, role, kind, &put)?;
        }
        self.taken.push(taken);
        Ok(())
    }

    /// The plan of a student that kept the dropped layer in the place of its own, and of its units
    /// those that are taken: names are the student's.
    fn donor(&self, taken: &TakenUnits) -> Plan {
        let own = self.source_layer(taken.layer);
        let mut plan = self.plan().clone();
        if let Some(layers) = plan.kept.get_mut(DEPTH) {
            let own = layers.iter_mut().filter(|layer| **layer == own);
            own.for_each(|layer| *layer = taken.from);
        }
        for (kind, replaced) in &taken.units {
            let dim = dim_of_layer(kind, taken.from);
            plan.kept.insert(dim, replaced.units.clone());
        }
        plan
    }

    /// A weight of the student with those of units of a donor in their places.
    fn with_taken(
        &self,
        param: &Param,
        side: usize,
        view: &PrunedView,
        taken: &TakenUnits,
    ) -> Result<Tensor> {
        let own = self.read(param.at, param.role, param.kind)?;
        let factor = self.factor_of(&param.name());
        let given = laid_out(view, param)?.f_mul_scalar(factor)?;
        let places = self.places(param, side, taken)?;
        let along = self.along(param, side);
        if given.size().get(along as usize) != Some(&(places.len() as i64)) {
            return Err(self.broken(format!(
                "`{}`: {} places for {:?}",
                param.name(),
                places.len(),
                given.size()
            )));
        }
        Ok(own.f_index_copy(along, &Tensor::f_from_slice(&places)?, &given)?)
    }

    /// Which side of a weight it is as [`StudentEditor::read`] lays it out.
    fn along(&self, param: &Param, side: usize) -> i64 {
        match param.transposed {
            true => (param.sides.len() - 1 - side) as i64,
            false => side as i64,
        }
    }

    /// Where the taken units are along a side of the student's weight.
    fn places(&self, param: &Param, side: usize, taken: &TakenUnits) -> Result<Vec<i64>> {
        let size_of = |dim: &str| self.spec().dims.get(dim).map(|dim| dim.size);
        let units_of = |dim: &str| {
            let replaced = taken.units.get(split_dim(dim).0)?;
            Some(replaced.places.as_slice())
        };
        let side = param.sides.get(side);
        let places = side.map(|side| side.positions(&size_of, &units_of));
        let places = places.ok_or_else(|| Error::Internal("a side that is not there".into()))?;
        Ok(places.into_iter().map(|place| place as i64).collect())
    }

    // --- refits

    /// Refits what reads the stream for units of a dropped layer: their rows of W become W_from +
    /// W_from_all·Δ, as [`refit_reader`](Self::refit_reader) does it for a layer's own.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`].
    pub fn refit_taken_reader(
        &mut self,
        at: At,
        role: Role,
        delta_ec: &Tensor,
        from: usize,
    ) -> Result<()> {
        let param = self.param(at, role, ParamKind::Weight)?.clone();
        for (side, places, donor) in self.places_taken(&param, from)? {
            let mut all = donor.clone();
            all.kept.remove(HIDDEN);
            let (teacher, spec) = (self.teacher(), self.pruned_spec());
            let pruned = laid_out(&PrunedView::new(teacher, spec, &donor)?, &param)?;
            let whole = laid_out(&PrunedView::new(teacher, spec, &all)?, &param)?;
            let refitted = pruned.f_add(&whole.f_matmul(delta_ec)?)?;
            let refitted = refitted.f_mul_scalar(self.factor_of(&param.name()))?;
            drop((pruned, whole));
            let stored = self.student()?.info(&param.name());
            let stored = stored.and_then(|info| kind_of(info.dtype));
            let stored = stored.ok_or_else(|| not_in_student(&param.name()))?;
            let refitted = refitted.f_to_kind(stored)?;
            let own = self.read(at, role, ParamKind::Weight)?;
            let own = own.f_to_kind(stored)?;
            let along = self.along(&param, side);
            let put = own.f_index_copy(along, &Tensor::f_from_slice(&places)?, &refitted)?;
            self.replace(at, role, ParamKind::Weight, &put)?;
        }
        Ok(())
    }

    /// The side of a weight along which units of a dropped layer were put, where they are, and the
    /// plan of a student that kept them.
    pub(super) fn places_taken(
        &self,
        param: &Param,
        from: usize,
    ) -> Result<Vec<(usize, Vec<i64>, Plan)>> {
        let taken = self.taken_at(param.at).filter(|taken| taken.from == from);
        let sides = taken.filter_map(|taken| Some((side_of(param, taken)?, taken)));
        sides
            .map(|(side, taken)| Ok((side, self.places(param, side, taken)?, self.donor(taken))))
            .collect()
    }

    /// A refitted reader with the rows of units that were taken left as they are.
    pub(super) fn without_taken(&self, param: &Param, refitted: Tensor) -> Result<Tensor> {
        let mut kept = refitted;
        for taken in self.taken_at(param.at) {
            let Some(side) = side_of(param, taken) else {
                continue;
            };
            let places = Tensor::f_from_slice(&self.places(param, side, taken)?)?;
            let n_rows = kept.size().first().copied().unwrap_or(0);
            let mut shape = vec![1; kept.dim()];
            shape.iter_mut().take(1).for_each(|side| *side = n_rows);
            let mut is_taken = Tensor::f_zeros(shape, (Kind::Bool, kept.device()))?;
            let _ = is_taken.f_index_fill_(0, &places, 1)?;
            let before = self.read(param.at, param.role, param.kind)?;
            let before = before.f_to_kind(kept.f_kind()?)?;
            kept = before.f_where_self(&is_taken, &kept)?;
        }
        Ok(kept)
    }
}

/// Whether two parts compute alike, all but their weights.
fn is_alike(a: &Sublayer, b: &Sublayer) -> bool {
    // Mixers are data, so what they print is what they are.
    format!("{a:?}") == format!("{b:?}")
}

/// The side of a weight along which the taken units lie.
fn side_of(param: &Param, taken: &TakenUnits) -> Option<usize> {
    param.sides.iter().position(|side| {
        let mut dims = side.dims().into_iter();
        dims.any(|dim| taken.units.contains_key(split_dim(dim).0))
    })
}
