//! Who is merged into whom in one layer, and the average.

use minitron_core::error::{Error, Present, Result};
use minitron_core::reconstruct::{StudentEditor, UnitOutputs, WholeUnits};
use minitron_core::spec::{At, EXPERT_MLP, EXPERTS, ParamKind, Role, dim_of_layer, dim_of_unit};
use tch::Tensor;

use super::assignment::best_assignment;

/// Who is merged into whom, in one layer.
pub(super) struct Merging<'o> {
    at: At,
    source_layer: usize,
    /// Kept experts, in the teacher's numbering.
    kept: Vec<usize>,
    /// Dropped ones that are merged into each of them.
    partners: Vec<Vec<Partner>>,
    outputs: &'o UnitOutputs,
}

/// A dropped expert.
struct Partner {
    unit: usize,
    /// Its neuron for each of the kept one's.
    order: Vec<usize>,
}

impl<'o> Merging<'o> {
    pub fn new(editor: &StudentEditor, outputs: &'o UnitOutputs) -> Result<Self> {
        let layer = outputs.at.layer().present("a layer of experts")?;
        let source_layer = editor.source_layer(layer);
        let kept = editor.kept(&dim_of_layer(EXPERTS, source_layer)).to_vec();
        let mut merging = Merging {
            at: outputs.at,
            source_layer,
            partners: kept.iter().map(|_| Vec::new()).collect(),
            kept,
            outputs,
        };
        let (whole, roles) = (
            editor.whole_units(merging.at)?,
            editor.unit_roles(merging.at),
        );
        let cosines = cosines(&outputs.sums_xe)?;
        let n_experts = outputs.n_tokens_x.len();
        for unit in (0..n_experts).filter(|unit| !merging.kept.contains(unit)) {
            // One that no token goes through has no weight in an average.
            if merging.n_tokens(unit)? == 0.0 {
                continue;
            }
            let of_unit = cosines.get(unit * n_experts..(unit + 1) * n_experts);
            let place = nearest(of_unit.present("an expert's cosines")?, &merging.kept)?;
            let kept = *merging.kept.get(place).present("a kept expert")?;
            let order = aligned(&whole, &roles, (kept, unit))?;
            let partners = merging.partners.get_mut(place);
            partners
                .present("a kept expert")?
                .push(Partner { unit, order });
        }
        Ok(merging)
    }

    /// Whether no expert is merged into another.
    pub fn is_empty(&self) -> bool {
        self.partners.iter().all(Vec::is_empty)
    }

    pub fn n_kept(&self) -> usize {
        self.kept.len()
    }

    fn n_tokens(&self, unit: usize) -> Result<f64> {
        let n_tokens = self.outputs.n_tokens_x.get(unit).copied();
        n_tokens.present("an expert's tokens")
    }

    /// A kept expert with those that are merged into it, and their weights.
    fn shares(&self, place: usize) -> Result<Vec<(usize, f64)>> {
        let kept = *self.kept.get(place).present("a kept expert")?;
        let partners = self.partners.get(place).present("a kept expert")?;
        let units = partners.iter().map(|partner| partner.unit);
        let mut shares = Vec::new();
        for unit in std::iter::once(kept).chain(units) {
            shares.push((unit, self.n_tokens(unit)?));
        }
        let total: f64 = shares.iter().map(|(_, n_tokens)| n_tokens).sum();
        for (_, share) in &mut shares {
            // By itself it stays, whether tokens go through it or not.
            *share = if partners.is_empty() {
                1.0
            } else {
                *share / total
            };
        }
        Ok(shares)
    }

    /// A weight of a kept expert with what is merged into it; none where that is nothing.
    pub fn merged(
        &self,
        editor: &StudentEditor,
        place: usize,
        role: (Role, ParamKind),
    ) -> Result<Option<Tensor>> {
        let partners = self.partners.get(place).present("a kept expert")?;
        let Some(first) = partners.first() else {
            return Ok(None);
        };
        let (kept, n_neurons) = (
            *self.kept.get(place).present("a kept expert")?,
            first.order.len(),
        );
        let neurons = editor.kept(&dim_of_unit(EXPERT_MLP, self.source_layer, kept));
        let whole = editor.whole_units(self.at)?;
        let own = whole
            .read(kept, role)?
            .mixed(&picking(neurons, n_neurons)?)?;
        let mut merged = own.shallow_clone();
        let shares = self.shares(place)?;
        for (partner, (_, share)) in partners.iter().zip(shares.iter().skip(1)) {
            let mut order = Vec::new();
            for &neuron in neurons {
                order.push(*partner.order.get(neuron).present("an aligned neuron")?);
            }
            let other = whole.read(partner.unit, role)?;
            let other = other.mixed(&picking(&order, n_neurons)?)?;
            // The difference of equals is zero, whatever rounding does to shares.
            merged = merged.f_add(&other.f_sub(&own)?.f_mul_scalar(*share)?)?;
        }
        Ok(Some(merged))
    }

    /// A router's weight or bias with the same averages of its rows.
    pub fn router(&self, editor: &StudentEditor, role: (Role, ParamKind)) -> Result<Tensor> {
        let n_experts = self.outputs.n_tokens_x.len();
        let mut mix = vec![0.0; self.kept.len() * n_experts];
        for (place, row) in mix.chunks_mut(n_experts.max(1)).enumerate() {
            for (unit, share) in self.shares(place)? {
                *row.get_mut(unit).present("an expert's share")? = share;
            }
        }
        let mix = Tensor::f_from_slice(&mix)?.f_view([self.kept.len() as i64, n_experts as i64])?;
        let of_all = editor.whole_units(self.at)?.read_of_all(role)?;
        Ok(mix.f_matmul(&of_all)?)
    }
}

/// Cosines between rows, [X · X]; 0 of a row without length.
fn cosines(sums_xe: &Tensor) -> Result<Vec<f64>> {
    let length = sums_xe
        .f_square()?
        .f_sum_dim_intlist(1i64, true, None)?
        .f_sqrt()?;
    let unit = sums_xe.f_div(&length.f_clamp_min(f64::MIN_POSITIVE)?)?;
    let cosines = unit.f_matmul(&unit.f_transpose(0, 1)?)?;
    Ok(Vec::<f64>::try_from(&cosines.f_reshape([-1])?)?)
}

/// The place of the kept expert with the largest cosine, the first of equals.
fn nearest(cosines: &[f64], kept: &[usize]) -> Result<usize> {
    let (mut best, mut place) = (f64::NEG_INFINITY, None);
    for (idx, &unit) in kept.iter().enumerate() {
        let cosine = *cosines.get(unit).present("a kept expert's cosine")?;
        if cosine > best {
            (best, place) = (cosine, Some(idx));
        }
    }
    place.ok_or_else(|| {
        Error::Recipe(
            "expert_merge: outputs of experts are not finite, so none is nearest; leave \
             expert_merge out, or compute in another --dtype"
                .into(),
        )
    })
}

/// For each neuron of a kept expert one of a dropped expert, so that their weights are alike.
fn aligned(
    whole: &WholeUnits,
    roles: &[(Role, ParamKind)],
    (kept, dropped): (usize, usize),
) -> Result<Vec<usize>> {
    let mut likeness: Option<Tensor> = None;
    for &role in roles {
        let mine = whole.read(kept, role)?.by_neuron()?;
        let theirs = whole.read(dropped, role)?.by_neuron()?;
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            continue;
        };
        if mine.size() != theirs.size() {
            return Err(Error::Recipe(format!(
                "expert_merge: experts {kept} and {dropped} have {} and {} neurons, and only \
                 equally wide ones can be averaged; leave expert_merge out",
                mine.size2()?.0,
                theirs.size2()?.0
            )));
        }
        let products = mine.f_matmul(&theirs.f_transpose(0, 1)?)?;
        likeness = Some(match likeness {
            Some(likeness) => likeness.f_add(&products)?,
            None => products,
        });
    }
    let Some(likeness) = likeness else {
        return Ok(Vec::new());
    };
    let n_neurons = likeness.size2()?.0 as usize;
    best_assignment(
        &Vec::<f64>::try_from(&likeness.f_reshape([-1])?)?,
        n_neurons,
    )
}

/// The map that picks some of n neurons, in this order.
fn picking(neurons: &[usize], n: usize) -> Result<Tensor> {
    let mut picked = vec![0.0; neurons.len() * n];
    for (row, &neuron) in picked.chunks_mut(n.max(1)).zip(neurons) {
        *row.get_mut(neuron).present("a neuron")? = 1.0;
    }
    Ok(Tensor::f_from_slice(&picked)?.f_view([neurons.len() as i64, n as i64])?)
}
