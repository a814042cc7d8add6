//! What single units add to the teacher's stream.

use std::collections::BTreeMap;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::ahead::Ahead;
use super::editor::StudentEditor;
use super::projections::{HELD_OUT, ProjectionSet, ProjectionStats, add_to, exact};
use super::shown::ShownPorts;
use super::streams::entering;
use super::weights::laid_out;
use crate::error::{Error, Present, Result};
use crate::model::{Block, MixerContext};
use crate::spec::{At, ParamKind, Writer};

/// What was seen of the units of a part of the teacher.
#[derive(Debug)]
pub struct SeenUnits {
    /// The part of the student that stands for it.
    pub at: At,
    /// The teacher's layer.
    pub layer: usize,
    /// What each unit adds to the residual stream by itself: the mean over tokens of ‖W_u·x_u‖²,
    /// where x_u is the unit's share of what the part's writer reads and W_u the columns for it.
    pub added: Vec<f64>,
    /// Where the student's part would read another stream, since the layer was dropped or earlier
    /// parts of dropped layers add to it: X is what it would read behind the earlier parts of all
    /// layers, or of its own where sums are normed, R what the part reads in this layer, all of it.
    pub told: Option<ProjectionStats>,
}

/// A part of the teacher whose units are looked at.
struct Looked {
    writer: Writer,
    /// Channels of a unit in what its writer reads.
    width: i64,
    /// Sums over tokens of x_u·x_uᵀ, [units, width, width] in f64.
    gram_ukk: Tensor,
    n_tokens: f64,
    told: Option<ProjectionStats>,
}

impl StudentEditor<'_> {
    /// Runs the teacher over the calibration text, and shows of some parts of the student, named
    /// with the kind of their units, what the units add to the residual stream in each layer that
    /// the part [stands for](StudentEditor::stands_for), the kept one and those it [can take
    /// of](StudentEditor::can_take).
    ///
    /// # Errors
    /// `Recipe` where there is no calibration text, or a part has no such units; those of `visit`.
    pub fn for_each_units_seen(
        &self,
        parts: &BTreeMap<At, &str>,
        visit: &mut dyn FnMut(SeenUnits) -> Result<()>,
    ) -> Result<()> {
        let Some(last) = parts.keys().last().and_then(|at| at.layer()) else {
            return Ok(());
        };
        let _no_grad = tch::no_grad_guard();
        let progress = self.calibration()?.progress;
        let mut teacher = entering(self, false)?;
        for source_layer in 0..self.source_layer(0) {
            teacher.pass_layer(&self.teacher_block(source_layer)?)?;
        }
        progress.start("look at units, layers", (last + 1) as u64);
        for layer in 0..=last {
            let layers = self.stands_for(layer);
            let wanted = parts.iter().filter(|(at, _)| at.layer() == Some(layer));
            let wanted: Vec<(At, &str)> = wanted.map(|(at, kind)| (*at, *kind)).collect();
            if wanted.is_empty() {
                for source_layer in layers {
                    teacher.pass_layer(&self.teacher_block(source_layer)?)?;
                }
            } else {
                let ahead = Ahead::run(self, &mut teacher, layers.clone(), true)?;
                let own = self.teacher_block(layers.start)?;
                for source_layer in layers {
                    let block = self.teacher_block(source_layer)?;
                    for &(at, kind) in &wanted {
                        let is_own = source_layer == self.source_layer(layer);
                        let (_, part) = at.place().present("a part of a layer")?;
                        if is_own || ahead.takes(part) && self.can_take(at, source_layer) {
                            let is_moved = !is_own || ahead.moves(part);
                            let teller = is_moved.then_some((&own, at));
                            let part = (&block, at.in_layer(source_layer), kind);
                            let contexts = &teacher.contexts;
                            let looked = self.looked_at(part, (&ahead, teller), contexts)?;
                            visit(SeenUnits {
                                at,
                                layer: source_layer,
                                added: self.weighed(at.in_layer(source_layer), &looked)?,
                                told: looked.told,
                            })?;
                        }
                    }
                }
            }
            progress.advance(1, "");
        }
        progress.finish();
        Ok(())
    }

    /// Sums over what the units of one part of a layer of the teacher show.
    fn looked_at(
        &self,
        (block, source, kind): (&Block, At, &str),
        (ahead, teller): (&Ahead, Option<(&Block, At)>),
        contexts: &[Rc<MixerContext>],
    ) -> Result<Looked> {
        let text = self.calibration()?;
        let holds_out = text.batches().len() >= HELD_OUT;
        let told = teller.map(|(_, at)| (at, holds_out));
        let mut looked = self.looked(source, kind, told)?;
        let mut ports = ShownPorts {
            at: source,
            wanted: vec![looked.writer.reads],
            seen: BTreeMap::new(),
        };
        let (layer, number) = source.place().present("a part of a layer")?;
        for (round, context) in contexts.iter().enumerate() {
            let state = ahead.state(layer, number, round)?;
            let _ = block.added(number, state.stream(), context, &mut ports)?;
            let x_btc = ports.seen.remove(&looked.writer.reads);
            let mut of_batch = looked.gram(&x_btc.present("what a writer reads")?)?;
            if let (Some((teller, _)), Some(told)) = (teller, &looked.told) {
                let read_bte = block.input(number, state.stream())?;
                let aimed = ahead.aimed(number, round)?;
                let own_bte = teller.input(number, aimed.stream())?;
                of_batch.extend(told.moments(&own_bte, &read_bte, &read_bte)?);
            }
            text.in_order(round, of_batch, &mut |batch, given| {
                looked.add(batch, given)
            })?;
        }
        Ok(looked)
    }

    /// Nothing yet; `told` of one that a part of the student is to tell, and whether batches are
    /// held out.
    fn looked(&self, at: At, kind: &str, told: Option<(At, bool)>) -> Result<Looked> {
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
        let told = told.map(|(of_student, holds_out)| {
            let readers = ProjectionSet {
                at: of_student,
                roles: part.mixer.ports().readers,
                is_writer: false,
                from: at.layer(),
            };
            let about_means = self.have_biases(&readers);
            let stats = ProjectionStats::new(readers, holds_out)?;
            Ok::<_, Error>(stats.about_means(about_means))
        });
        Ok(Looked {
            writer,
            width: width as i64,
            gram_ukk: Tensor::f_zeros([1], (Kind::Double, Device::Cpu))?,
            n_tokens: 0.0,
            told: told.transpose()?,
        })
    }

    /// With the columns of the writer.
    fn weighed(&self, at: At, looked: &Looked) -> Result<Vec<f64>> {
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
            .f_div_scalar(looked.n_tokens.max(1.0))?;
        Ok(Vec::<f64>::try_from(&added_u)?)
    }
}

impl Looked {
    /// Sums of one batch, and how many tokens it has.
    fn gram(&self, x_btc: &Tensor) -> Result<Vec<Tensor>> {
        let x_nuk = x_btc.f_to_kind(Kind::Float)?.f_reshape([
            -1,
            x_btc.size().last().copied().unwrap_or(0) / self.width,
            self.width,
        ])?;
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
        Ok(vec![
            exact(&gram_ukk)?,
            Tensor::f_from_slice(&[n_tokens as f64])?,
        ])
    }

    fn add(&mut self, batch: usize, given: &[Tensor]) -> Result<()> {
        let [gram_ukk, n_tokens, told @ ..] = given else {
            return Err(Error::Internal("a batch without its sums".into()));
        };
        self.n_tokens += n_tokens.f_double_value(&[0])?;
        add_to(&mut self.gram_ukk, gram_ukk)?;
        match &mut self.told {
            Some(stats) => stats.add(batch, told),
            None => Ok(()),
        }
    }
}
