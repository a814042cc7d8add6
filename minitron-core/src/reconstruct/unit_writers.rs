//! What experts write to the stream, fitted one after the other from one pass of their layer: what
//! a fit changes is taken from what the stream lacks.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::half::Half;
use super::projections::{ProjectionSet, ProjectionStats, products, rows, total};
use super::store::TensorStore;
use crate::error::{Present, Result};
use crate::model::{Port, Site, Tap};
use crate::spec::{At, ParamKind, Role, Writer};

/// What this process's batches give the experts of one part to read, and what the stream lacks.
pub(super) struct UnitWriters {
    role: Role,
    scale: f64,
    /// What an expert reads of its tokens [N, C] as computed, by batch and expert.
    inputs: TensorStore,
    /// Places of these among the batch's tokens [N].
    places: TensorStore,
    /// What the stream lacks [B·T, E] in f32, by batch.
    lacking: TensorStore,
    batches: Vec<Lacking>,
    device: Device,
}

/// Of one batch, over all its tokens.
struct Lacking {
    /// Sum of what the stream lacks, [E] in f64.
    r_sum_e: Tensor,
    /// ‖·‖² of it.
    r_squared: f64,
    n_tokens: usize,
    /// ‖·‖² of what the part has to add.
    target_squared: f64,
}

impl UnitWriters {
    /// For one part of a layer; tensors wait in memory, or in folders below `dir`.
    pub fn new(dir: Option<&Path>, half: &Half, writer: Writer) -> Result<Self> {
        Ok(UnitWriters {
            role: writer.role,
            scale: half.part.scale,
            inputs: TensorStore::new(dir, "experts")?,
            places: TensorStore::new(dir, "places")?,
            lacking: TensorStore::new(dir, "lacking")?,
            batches: Vec::new(),
            device: Device::Cpu,
        })
    }

    /// Adds a batch: what its experts read, what the stream lacks after the part and what the part
    /// added, both [B, T, E] in f32.
    pub fn push(&mut self, seen: UnitInputs, r_bte: &Tensor, added_bte: &Tensor) -> Result<()> {
        let batch = self.batches.len();
        let r_ne = rows(r_bte)?;
        self.batches.push(Lacking {
            r_sum_e: sum(&r_ne)?,
            r_squared: total(&r_ne.f_square()?)?,
            n_tokens: r_ne.size2()?.0 as usize,
            target_squared: total(&r_bte.f_add(added_bte)?.f_square()?)?,
        });
        self.lacking.put(&batch.to_string(), &r_ne)?;
        self.device = r_bte.device();
        for (unit, (places_n, x_nc)) in seen.by_unit {
            let name = name(batch, unit);
            self.inputs.put(&name, &x_nc)?;
            self.places.put(&name, &places_n)?;
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
            from: None,
        };
        let mut stats = ProjectionStats::new(projections, holds_out)?;
        stats.scale = self.scale;
        let text = editor.calibration()?;
        for (batch, of_all) in self.batches.iter().enumerate() {
            let (x_nc, places_n) = self.read(batch, at)?;
            let numbers = [
                of_all.r_squared,
                of_all.n_tokens as f64,
                of_all.target_squared,
            ];
            let r_ne = self.lacking(batch, &places_n)?;
            // At the tokens that go to the expert; R's sums are over all.
            let x_sum_c = x_nc.f_sum_dim_intlist(0i64, false, Kind::Double)?;
            let sums = (x_sum_c, of_all.r_sum_e.shallow_clone());
            let of_batch = products((&x_nc, &r_ne), sums, numbers)?;
            text.in_order(batch, of_batch, &mut |batch, given| stats.add(batch, given))?;
        }
        Ok(stats)
    }

    /// Takes from what the stream lacks what a change ΔW [E, C] of an expert's weight gives it.
    pub fn take(&mut self, at: At, delta_ec: &Tensor) -> Result<()> {
        let delta_ce = delta_ec.f_transpose(0, 1)?.f_to_kind(Kind::Float)?;
        let delta_ce = delta_ce.f_to_device(self.device)?;
        for batch in 0..self.batches.len() {
            let (x_nc, places_n) = self.read(batch, at)?;
            let before_ne = self.lacking(batch, &places_n)?;
            let after_ne = before_ne.f_sub(&x_nc.f_matmul(&delta_ce)?)?;
            let of_all = self.batches.get_mut(batch).present("a batch")?;
            of_all.r_sum_e = of_all.r_sum_e.f_add(&sum(&after_ne)?)?;
            of_all.r_sum_e = of_all.r_sum_e.f_sub(&sum(&before_ne)?)?;
            of_all.r_squared += total(&after_ne.f_square()?)? - total(&before_ne.f_square()?)?;
            self.lacking
                .put_rows(&batch.to_string(), &places_n, &after_ne)?;
        }
        Ok(())
    }

    /// In f32, as the part adds it.
    fn read(&self, batch: usize, at: At) -> Result<(Tensor, Tensor)> {
        let name = name(batch, at);
        self.places.get(&name).present(
            "what an expert reads: its mixer shows it of each, be it with tokens or without",
        )?;
        let x_nc = self.inputs.read(&name)?.f_to_device(self.device)?;
        let x_nc = x_nc.f_to_kind(Kind::Float)?;
        let x_nc = match self.scale == 1.0 {
            true => x_nc,
            false => x_nc.f_mul_scalar(self.scale)?,
        };
        Ok((x_nc, self.places.read(&name)?))
    }

    fn lacking(&self, batch: usize, places_n: &Tensor) -> Result<Tensor> {
        let r_ne = self.lacking.read_rows(&batch.to_string(), places_n)?;
        Ok(r_ne.f_to_device(self.device)?)
    }
}

/// Over tokens, in f64.
fn sum(r_ne: &Tensor) -> Result<Tensor> {
    Ok(r_ne.f_sum_dim_intlist(0i64, false, Kind::Double)?)
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
            let width = x.size().last().copied().present("neurons of an expert")?;
            let x_nc = x.f_reshape([-1, width])?;
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
