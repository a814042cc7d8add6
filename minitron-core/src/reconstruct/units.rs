//! Weights of a layer's experts as the teacher has them, kept or not, for students that take from
//! those that go.

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::weights::laid_out_rows;
use crate::error::{Present, Result};
use crate::plan::Plan;
use crate::prune::PrunedView;
use crate::spec::{At, EXPERTS, ModelSpec, Param, ParamKind, Role, Side, split_unit};

/// All experts of a part of the teacher, with all their neurons, at the channels that the student
/// keeps.
pub struct WholeUnits<'e> {
    view: PrunedView<'e>,
    spec: &'e ModelSpec,
    plan: Plan,
    /// In the teacher.
    source: At,
    /// In the student.
    at: At,
}

/// A weight of an expert as a layer multiplies with it, [out | in], in f64 on the CPU.
#[derive(Debug)]
pub struct UnitWeight {
    tensor: Tensor,
    /// What lies along its sides.
    sides: Vec<Vec<Run>>,
}

/// Positions along a side.
#[derive(Debug, Clone, Copy)]
struct Run {
    len: usize,
    /// How many of them a neuron takes, where neurons lie there.
    of_neuron: Option<usize>,
}

impl StudentEditor<'_> {
    /// The teacher's experts behind a part of the student.
    ///
    /// # Errors
    /// `Internal` where the part is not in a layer.
    pub fn whole_units(&self, at: At) -> Result<WholeUnits<'_>> {
        let layer = at.layer().present("a layer of experts")?;
        let source_layer = self.source_layer(layer);
        let mut plan = self.plan().clone();
        plan.kept.retain(|dim, _| {
            let (kind, of_layer, unit) = split_unit(dim);
            of_layer != Some(source_layer) || unit.is_none() && kind != EXPERTS
        });
        let spec = self.pruned_spec();
        Ok(WholeUnits {
            view: PrunedView::new(self.teacher(), spec, &plan)?,
            spec,
            plan,
            source: at.in_layer(source_layer),
            at,
        })
    }

    /// Roles of the weights that each expert of a part of the student has of its own; the router is
    /// none of them.
    pub fn unit_roles(&self, at: At) -> Vec<(Role, ParamKind)> {
        let stacked = self.stacked_roles(at);
        let of_layer = self.spec().params_in(at.layer());
        let own = of_layer.filter(|param| {
            param.at == at.unit(0) || param.at == at && stacked.contains(&param.role)
        });
        own.map(|param| (param.role, param.kind)).collect()
    }

    /// Roles of which one tensor holds the weights of all experts of a part.
    pub(super) fn stacked_roles(&self, at: At) -> Vec<Role> {
        let parts = at.layer().into_iter();
        let mut parts = parts.flat_map(|layer| self.spec().sublayers(layer));
        let part = parts.find(|(place, _)| *place == at);
        let active = part.and_then(|(_, part)| part.mixer.active());
        active.map(|active| active.stacked).unwrap_or_default()
    }

    /// Whether an earlier reconstruction replaced weights of these roles in a part of the student,
    /// or in one of its experts.
    pub fn is_replaced(&self, at: At, roles: &[(Role, ParamKind)]) -> bool {
        let of_layer = self.spec().params_in(at.layer());
        let mut named = of_layer
            .filter(|param| param.at.whole() == at && roles.contains(&(param.role, param.kind)));
        named.any(|param| self.changes.get(&param.name()).is_some())
    }

    /// Puts weights in the place of those of some experts of a part, laid out as
    /// [`UnitWeight::mixed`] gives them; `of` gives none for an expert that stays as it is.
    ///
    /// # Errors
    /// As [`StudentEditor::replace`], and those of `of`.
    pub fn replace_units(
        &mut self,
        (at, n_units): (At, usize),
        (role, kind): (Role, ParamKind),
        of: &dyn Fn(&Self, usize) -> Result<Option<Tensor>>,
    ) -> Result<()> {
        for unit in 0..n_units {
            if let Some(tensor) = of(self, unit)? {
                self.replace(at.unit(unit), role, kind, &tensor)?;
            }
        }
        Ok(())
    }
}

impl WholeUnits<'_> {
    /// A weight of one of the teacher's experts.
    ///
    /// # Errors
    /// `Internal` where it has none of this role: ask [`StudentEditor::unit_roles`] first.
    pub fn read(&self, unit: usize, (role, kind): (Role, ParamKind)) -> Result<UnitWeight> {
        let own = self.spec.find(self.source.unit(unit), role, kind);
        let of_all = self.spec.find(self.source, role, kind);
        let param = own.or(of_all).present("a weight of an expert")?;
        let is_own = own.is_some();
        let place = Param {
            at: if is_own { self.at.unit(unit) } else { self.at },
            ..param.clone()
        };
        let rows = (!is_own).then_some(unit..unit + 1);
        let tensor = laid_out_rows(&self.view, &place, rows)?;
        let sides = param.sides.iter().skip(usize::from(!is_own));
        let mut sides: Vec<Vec<Run>> = sides.map(|side| self.runs(&side.in_row(unit))).collect();
        if param.transposed {
            sides.reverse();
        }
        Ok(UnitWeight {
            tensor: if is_own {
                tensor
            } else {
                tensor.f_squeeze_dim(0)?
            },
            sides,
        })
    }

    /// The router's weight or bias with a row for each of the teacher's experts.
    ///
    /// # Errors
    /// As [`WholeUnits::read`].
    pub fn read_of_all(&self, (role, kind): (Role, ParamKind)) -> Result<Tensor> {
        let param = self.spec.find(self.source, role, kind);
        let place = Param {
            at: self.at,
            ..param.present("a weight beside the experts")?.clone()
        };
        laid_out_rows(&self.view, &place, None)
    }

    fn runs(&self, side: &Side) -> Vec<Run> {
        let size_of = |dim: &str| {
            let kept = self.plan.kept.get(dim).map(Vec::len);
            kept.or_else(|| self.spec.dims.get(dim).map(|dim| dim.size))
        };
        let parts = side.0.iter();
        let runs = parts.map(|part| {
            let units = part.units(&size_of);
            Run {
                len: part.len(&size_of),
                of_neuron: units
                    .filter(|(dim, _)| split_unit(dim).2.is_some())
                    .map(|(_, block)| block),
            }
        });
        runs.collect()
    }
}

impl UnitWeight {
    /// The weight.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// What belongs to each neuron, a row for each, [F, C]; none where neurons are no side of it.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn by_neuron(&self) -> Result<Option<Tensor>> {
        let Some(side) = self.side_of_neurons() else {
            return Ok(None);
        };
        let runs = self.sides.get(side).present("a side")?;
        let lens: Vec<i64> = runs.iter().map(|run| run.len as i64).collect();
        let first = self.tensor.f_movedim_int(side as i64, 0)?;
        let mut rows = Vec::new();
        for (part, run) in first.f_split_with_sizes(&lens, 0)?.iter().zip(runs) {
            if let Some(block) = run.of_neuron {
                let n_neurons = (run.len / block.max(1)) as i64;
                rows.push(part.f_reshape([n_neurons, -1])?);
            }
        }
        Ok(Some(Tensor::f_cat(&rows, 1)?))
    }

    /// The weight of an expert whose neurons are these sums of its own, mix [K, F]; as it is where
    /// neurons are no side of it.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn mixed(&self, mix_kf: &Tensor) -> Result<Tensor> {
        let Some(side) = self.side_of_neurons() else {
            return Ok(self.tensor.shallow_clone());
        };
        let mut diagonal = Vec::new();
        for run in self.sides.get(side).present("a side")? {
            diagonal.push(match run.of_neuron {
                Some(1) => mix_kf.shallow_clone(),
                Some(block) => mix_kf.f_kron(&eye(block)?)?,
                None => eye(run.len)?,
            });
        }
        let mix = match diagonal.as_slice() {
            [one] => one.shallow_clone(),
            several => Tensor::f_block_diag(several)?,
        };
        match side {
            0 => Ok(mix.f_matmul(&self.tensor)?),
            _ => Ok(self.tensor.f_matmul(&mix.f_transpose(0, 1)?)?),
        }
    }

    fn side_of_neurons(&self) -> Option<usize> {
        let mut sides = self.sides.iter();
        sides.position(|runs| runs.iter().any(|run| run.of_neuron.is_some()))
    }
}

fn eye(n: usize) -> Result<Tensor> {
    Ok(Tensor::f_eye(n as i64, (Kind::Double, Device::Cpu))?)
}
