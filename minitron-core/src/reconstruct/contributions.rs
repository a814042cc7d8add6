//! What single units add to the teacher's stream.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::{add_to, exact};
use super::shown::ShownPorts;
use super::streams::entering;
use super::weights::laid_out;
use crate::error::{Error, Present, Result};
use crate::spec::{At, ParamKind, Writer};

/// A part of the teacher whose units are looked at.
struct Looked {
    writer: Writer,
    /// Channels of a unit in what its writer reads.
    width: i64,
    /// Sums over tokens of x_u·x_uᵀ, [units, width, width] in f64.
    gram_ukk: Tensor,
}

impl StudentEditor<'_> {
    /// Runs the teacher over the calibration text, and gives for parts of it what each unit of a
    /// kind adds to the residual stream by itself: the mean over tokens of ‖W_u·x_u‖², where x_u
    /// is the unit's share of what the part's writer reads and W_u the columns for it.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text, or a part has no such units.
    pub fn contributions(&self, parts: &BTreeMap<At, &str>) -> Result<BTreeMap<At, Vec<f64>>> {
        let Some(last) = parts.keys().last().and_then(|at| at.layer()) else {
            return Ok(BTreeMap::new());
        };
        let _no_grad = tch::no_grad_guard();
        let text = self.calibration()?;
        let mut batches = entering(self, false)?;
        let mut found = BTreeMap::new();
        text.progress
            .start("look at units, layers", (last + 1) as u64);
        for layer in 0..=last {
            let block = self.teacher_block(layer)?;
            let places = self.teacher_spec().places(layer);
            let places: Vec<At> = places.map(|(at, _)| at).collect();
            for (number, at) in places.into_iter().enumerate() {
                let Some(kind) = parts.get(&at) else {
                    batches.pass(&block, number, &mut |_, _| Ok(()))?;
                    continue;
                };
                let mut looked = self.looked(at, kind)?;
                let mut ports = ShownPorts {
                    at,
                    wanted: vec![looked.writer.reads],
                    seen: BTreeMap::new(),
                };
                let mut n_seen = 0.0;
                for (round, context) in batches.contexts.iter().enumerate() {
                    let mut state = batches.states.before(number, round)?;
                    let _ = state.pass_shown(&block, number, context, &mut ports)?;
                    batches.states.put(round, &state)?;
                    let x_btc = ports.seen.remove(&looked.writer.reads);
                    let of_batch = looked.gram(&x_btc.present("what a writer reads")?)?;
                    text.in_order(round, of_batch, &mut |_, given| {
                        let [gram_ukk, n_of_batch] = given else {
                            return Err(Error::Internal("a batch without its sums".into()));
                        };
                        n_seen += n_of_batch.f_double_value(&[0])?;
                        add_to(&mut looked.gram_ukk, gram_ukk)
                    })?;
                }
                found.insert(at, self.weighed(at, &looked, n_seen)?);
            }
            text.progress.advance(1, "");
        }
        text.progress.finish();
        Ok(found)
    }

    fn looked(&self, at: At, kind: &str) -> Result<Looked> {
        let spec = self.teacher_spec();
        let parts = at.layer().into_iter().flat_map(|layer| spec.places(layer));
        let part = parts.into_iter().find(|(place, _)| *place == at);
        let (_, part) = part.present("a part of the teacher")?;
        let observed = part.mixer.observed();
        let writer = part.mixer.ports().writer;
        // One after the other in what the writer reads.
        let units = writer.and_then(|writer| {
            let mut seen = observed.iter();
            let seen = seen.find(|seen| seen.kind == kind && seen.port == writer.reads);
            seen.map(|seen| (writer, seen.width))
        });
        let (writer, width) = units.ok_or_else(|| {
            Error::Recipe(format!(
                "`{}`: the {} at {at} does not show what each of its {kind} adds; leave it out",
                self.tag,
                part.mixer.name()
            ))
        })?;
        Ok(Looked {
            writer,
            width: width as i64,
            gram_ukk: Tensor::f_zeros([1], (Kind::Double, tch::Device::Cpu))?,
        })
    }

    /// With the columns of the writer.
    fn weighed(&self, at: At, looked: &Looked, n_tokens: f64) -> Result<Vec<f64>> {
        let spec = self.teacher_spec();
        let writer = spec.find(at, looked.writer.role, ParamKind::Weight);
        let weight_ec = laid_out(self.teacher(), writer.present("a part's writer")?)?;
        let n_embed = weight_ec.size().first().copied().unwrap_or(0);
        let weight_uke = weight_ec
            .f_transpose(0, 1)?
            .f_reshape([-1, looked.width, n_embed])?;
        let of_weights_ukk = weight_uke.f_matmul(&weight_uke.f_transpose(1, 2)?)?;
        let added_u = of_weights_ukk
            .f_mul(&looked.gram_ukk)?
            .f_sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Double)?
            .f_div_scalar(n_tokens.max(1.0))?;
        Ok(Vec::<f64>::try_from(&added_u)?)
    }
}

impl Looked {
    /// Sums of one batch, and how many tokens it has.
    fn gram(&self, x_btc: &Tensor) -> Result<Vec<Tensor>> {
        let x_nuk = x_btc
            .f_to_kind(Kind::Float)?
            .f_reshape([-1, x_btc.size().last().copied().unwrap_or(0) / self.width, self.width])?;
        let n_tokens = x_nuk.size().first().copied().unwrap_or(0);
        let gram_ukk = match self.width {
            1 => x_nuk
                .f_square()?
                .f_sum_dim_intlist(0i64, false, Kind::Double)?
                .f_unsqueeze(1)?,
            _ => {
                let x_unk = x_nuk.f_transpose(0, 1)?;
                x_unk.f_transpose(1, 2)?.f_matmul(&x_unk)?
            }
        };
        Ok(vec![exact(&gram_ukk)?, Tensor::f_from_slice(&[n_tokens as f64])?])
    }
}
