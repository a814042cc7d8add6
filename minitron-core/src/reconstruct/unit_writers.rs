//! What experts write to the stream, fitted one after the other from one pass of their layer: what
//! one of them changes is taken from what the stream lacks.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::half::Half;
use super::projections::{ProjectionSet, ProjectionStats, moments_of_some, rows};
use super::store::TensorStore;
use crate::error::{Present, Result};
use crate::model::{Port, Site, Tap};
use crate::spec::{At, ParamKind, Role, Writer};

/// What this process's batches give the experts of one part to read, and what the stream lacks.
pub(super) struct UnitWriters {
    role: Role,
    scale: f64,
    /// What an expert reads of its tokens [N, C], by batch and expert.
    inputs: TensorStore,
    /// Places of these among the batch's tokens, [N].
    places: BTreeMap<String, Tensor>,
    /// What the stream lacks, [B·T, E] by batch.
    lacking: TensorStore,
    /// What the part has to add to it, ‖·‖² by batch.
    targets: Vec<f64>,
    device: Device,
}

impl UnitWriters {
    /// For one part of a layer; tensors wait in memory, or in folders below `dir`.
    pub fn new(dir: Option<&Path>, half: &Half, writer: Writer) -> Result<Self> {
        Ok(UnitWriters {
            role: writer.role,
            scale: half.part.scale,
            inputs: TensorStore::new(dir, "experts")?,
            places: BTreeMap::new(),
            lacking: TensorStore::new(dir, "lacking")?,
            targets: Vec::new(),
            device: Device::Cpu,
        })
    }

    /// Adds a batch: what its experts read, what the stream lacks after the part and what the part
    /// added, both [B, T, E] in f32.
    pub fn push(&mut self, seen: UnitInputs, r_bte: &Tensor, added_bte: &Tensor) -> Result<()> {
        let batch = self.targets.len();
        let target = rows(&r_bte.f_add(added_bte)?)?.f_square()?;
        self.targets
            .push(target.f_sum(Kind::Double)?.f_double_value(&[])?);
        self.lacking.put(&batch.to_string(), &rows(r_bte)?)?;
        self.device = r_bte.device();
        for (unit, (places_n, x_nc)) in seen.by_unit {
            let x_nc = if self.scale == 1.0 {
                x_nc
            } else {
                x_nc.f_mul_scalar(self.scale)?
            };
            let name = name(batch, unit);
            self.inputs.put(&name, &x_nc)?;
            self.places.insert(name, places_n);
        }
        Ok(())
    }

    /// What an expert reads, and what the stream lacks by now.
    pub fn stats(
        &self,
        editor: &StudentEditor,
        at: At,
        holds_out: bool,
    ) -> Result<ProjectionStats> {
        let projections = ProjectionSet {
            at,
            roles: vec![self.role],
            is_writer: true,
        };
        let mut stats = ProjectionStats::new(projections, holds_out)?;
        stats.scale = self.scale;
        let text = editor.calibration()?;
        for (batch, &target) in self.targets.iter().enumerate() {
            let (x_nc, places_n) = self.read(batch, at)?;
            let r_ne = self.lacking(batch)?;
            let mine_ne = r_ne.f_index_select(0, &places_n)?;
            let of_batch = moments_of_some((&x_nc, &mine_ne), &r_ne, target)?;
            text.in_order(batch, of_batch, &mut |batch, given| stats.add(batch, given))?;
        }
        Ok(stats)
    }

    /// Takes from what the stream lacks what a change ΔW [E, C] of an expert's weight gives it.
    pub fn take(&mut self, at: At, delta_ec: &Tensor) -> Result<()> {
        let delta_ce = delta_ec.f_transpose(0, 1)?.f_to_kind(Kind::Float)?;
        let delta_ce = delta_ce.f_to_device(self.device)?;
        for batch in 0..self.targets.len() {
            let (x_nc, places_n) = self.read(batch, at)?;
            if places_n.numel() > 0 {
                let given_ne = x_nc.f_to_kind(Kind::Float)?.f_matmul(&delta_ce)?;
                let mut r_ne = self.lacking(batch)?;
                let _ = r_ne.f_index_add_(0, &places_n, &given_ne.f_neg()?)?;
                self.lacking.put(&batch.to_string(), &r_ne)?;
            }
        }
        Ok(())
    }

    fn read(&self, batch: usize, at: At) -> Result<(Tensor, Tensor)> {
        let name = name(batch, at);
        let places_n = self.places.get(&name).present("tokens of an expert")?;
        let x_nc = self.inputs.read(&name)?.f_to_device(self.device)?;
        Ok((x_nc, places_n.shallow_clone()))
    }

    fn lacking(&self, batch: usize) -> Result<Tensor> {
        Ok(self
            .lacking
            .read(&batch.to_string())?
            .f_to_device(self.device)?)
    }
}

fn name(batch: usize, at: At) -> String {
    format!("{batch} {at:?}")
}

/// Remembers what the experts of one part read of their own tokens.
pub(super) struct UnitInputs {
    at: At,
    reads: Port,
    by_unit: BTreeMap<At, (Tensor, Tensor)>,
}

impl UnitInputs {
    /// Of a part, at the port that its writer reads.
    pub fn new(at: At, writer: Writer) -> Self {
        UnitInputs {
            at,
            reads: writer.reads,
            by_unit: BTreeMap::new(),
        }
    }
}

impl Tap for UnitInputs {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Inside { at: at @ At::Unit { .. }, port }
            if at.whole() == self.at && port == self.reads)
    }

    /// What is zero takes no part in any sum.
    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        if let Site::Inside { at, .. } = site {
            let x_nc = rows(x)?;
            let is_there = x_nc.f_ne(0.0)?.f_any_dim(1, false)?;
            let places_n = is_there.f_nonzero()?.f_squeeze_dim(1)?;
            let x_nc = x_nc.f_index_select(0, &places_n)?;
            self.by_unit.insert(at, (places_n, x_nc));
        }
        Ok(())
    }
}

impl StudentEditor<'_> {
    /// The experts of a part whose weights of this role are their own, or rows of one tensor.
    pub(super) fn units_of(&self, at: At, writer: Writer) -> Vec<At> {
        let spec = self.spec();
        if self.stacked_roles(at).contains(&writer.role) {
            let stacked = spec.find(at, writer.role, ParamKind::Weight);
            let side = stacked.and_then(|param| param.sides.first());
            let n_units = side.map_or(0, |side| spec.len(side));
            return (0..n_units).map(|unit| at.unit(unit)).collect();
        }
        let places = spec.with_units(at).into_iter();
        places.filter(|place| *place != at).collect()
    }
}
