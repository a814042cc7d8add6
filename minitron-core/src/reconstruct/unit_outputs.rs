//! What the teacher's experts give, where the student lost some of them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::editor::StudentEditor;
use super::projections::{add_to, exact};
use super::shown::ShownPorts;
use super::stream_state::Embedded;
use super::streams::entering;
use crate::error::{Error, Present, Result};
use crate::mixers::EXPERT_GATES;
use crate::model::{Block, Port};
use crate::spec::{At, EXPERTS, dim_of_layer};

/// What the teacher's experts of one part give on the calibration text.
#[derive(Debug)]
pub struct UnitOutputs {
    /// The part in the student.
    pub at: At,
    /// Tokens that the teacher's router sends through each.
    pub n_tokens_x: Vec<f64>,
    /// Sum over all tokens of what each would give them, [X, E] in f64 on the CPU.
    pub sums_xe: Tensor,
}

impl StudentEditor<'_> {
    /// Runs the teacher over the calibration text and shows, of every part that lost experts, what
    /// the teacher's give there, from front to back; `visit` may replace weights. `sums` is the
    /// port of what is added up. Where no expert goes, nothing runs.
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text, and for experts that do not show such sums.
    pub fn for_each_part_that_lost_units(
        &mut self,
        sums: Port,
        visit: &mut dyn FnMut(&mut Self, &UnitOutputs) -> Result<()>,
    ) -> Result<()> {
        let cut = self.parts_that_lost_units(sums)?;
        let Some(last) = cut.keys().last().and_then(|source| source.layer()) else {
            return Ok(());
        };
        let _no_grad = tch::no_grad_guard();
        let progress = self.calibration()?.progress;
        let mut batches = entering(self, false)?;
        let layers = self.inputs.only.map_or(0, |only| only.layer)..last + 1;
        progress.start("look at experts, layers", layers.len() as u64);
        for source_layer in layers {
            let block = self.teacher_block(source_layer)?;
            let places = self.teacher_spec().places(source_layer);
            let places: Vec<At> = places.map(|(source, _)| source).collect();
            for (number, source) in places.into_iter().enumerate() {
                match cut.get(&source) {
                    None => batches.pass(&block, number, &mut |_, _| Ok(()))?,
                    Some(&at) => {
                        let ports = ShownPorts {
                            at: source,
                            wanted: vec![EXPERT_GATES, sums],
                            seen: BTreeMap::new(),
                        };
                        let outputs =
                            self.unit_outputs(&mut batches, (&block, number), ports, at)?;
                        visit(self, &outputs)?;
                    }
                }
            }
            progress.advance(1, "");
        }
        progress.finish();
        Ok(())
    }

    /// Parts of the teacher's, with where they are in the student.
    fn parts_that_lost_units(&self, sums: Port) -> Result<BTreeMap<At, At>> {
        let mut cut = BTreeMap::new();
        for layer in 0..self.n_layers() {
            let source_layer = self.source_layer(layer);
            let dim = dim_of_layer(EXPERTS, source_layer);
            let n_all = self.teacher_spec().dims.get(&dim).map(|dim| dim.size);
            if n_all.is_none_or(|n| self.kept(&dim).len() == n) {
                continue;
            }
            for (source, part) in self.teacher_spec().sublayers(source_layer) {
                let at = source.in_layer(layer);
                let has_units = part
                    .mixer
                    .observed()
                    .iter()
                    .any(|seen| seen.kind == EXPERTS);
                if !has_units || !self.is_there(at) {
                    continue;
                }
                let shows = part.mixer.shows();
                if ![EXPERT_GATES, sums].iter().all(|port| shows.contains(port)) {
                    return Err(Error::Recipe(format!(
                        "`{}`: the {} of layer {source_layer} do not show what each of them \
                         gives; leave it out",
                        self.tag,
                        part.mixer.name()
                    )));
                }
                cut.insert(source, at);
            }
        }
        Ok(cut)
    }

    /// Moves the teacher past one part of a layer and adds up what its experts give.
    fn unit_outputs(
        &self,
        batches: &mut Embedded,
        (block, number): (&Block, usize),
        mut ports: ShownPorts,
        at: At,
    ) -> Result<UnitOutputs> {
        let text = self.calibration()?;
        let options = (Kind::Double, Device::Cpu);
        let mut sums = [
            Tensor::f_zeros([1], options)?,
            Tensor::f_zeros([1], options)?,
        ];
        for (round, context) in batches.contexts.iter().enumerate() {
            let mut state = batches.states.before(number, round)?;
            let _ = state.pass_shown(block, number, context, &mut ports)?;
            batches.states.put(round, &state)?;
            let mut of_batch = Vec::new();
            for port in ports.wanted.clone() {
                let seen = ports.seen.remove(&port);
                let seen = seen.present("what experts show")?;
                of_batch.push(match port == EXPERT_GATES {
                    true => over_tokens(&seen.f_ne(0.0)?)?,
                    false => exact(&seen)?,
                });
            }
            text.in_order(round, of_batch, &mut |_, given| {
                for (sum, given) in sums.iter_mut().zip(given) {
                    add_to(sum, given)?;
                }
                Ok(())
            })?;
        }
        let [n_tokens_x, sums_xe] = sums;
        Ok(UnitOutputs {
            at,
            n_tokens_x: Vec::<f64>::try_from(&n_tokens_x)?,
            sums_xe,
        })
    }
}

/// Sums over tokens of [B, T, X].
fn over_tokens(x_btx: &Tensor) -> Result<Tensor> {
    exact(&x_btx.f_sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double)?)
}
