//! A student's forward pass, and the way of its gradient back through the layers.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};

use super::teacher::Kept;
use minitron_core::error::Result;
use minitron_core::model::{Direction, Held, Input, MixerContext, Site, Transformer};

/// Told of each layer whose parameters have all of a pass's gradient.
pub(super) type AfterLayer<'f> = &'f mut dyn FnMut(usize) -> Result<()>;

/// What the backward pass is computed from, cut between the layers, so that each is done before
/// the next begins. B batch, T tokens, E embed.
///
/// A scalar that depends on `hidden_bte` and `states` is made first; [`Pass::backward`] takes its
/// gradient down to the parameters.
#[derive(Debug)]
pub(super) struct Pass<'m> {
    model: &'m Transformer,
    input: Input<'m>,
    context: MixerContext,
    sites: &'m BTreeSet<Site>,
    /// The layers, and last what follows them.
    steps: Vec<Step>,
    /// The last layer, which the way back begins with.
    turn: Option<Held<'m>>,
    /// The last hidden state [B, T, E].
    pub hidden_bte: Tensor,
    /// States at the wanted sites.
    pub states: BTreeMap<Site, Tensor>,
}

/// A part of the pass.
#[derive(Debug)]
struct Step {
    input_bte: Tensor,
    /// Where its inside is held: otherwise it runs again.
    held: Option<Run>,
}

/// What a step gave, with the graph behind it.
#[derive(Debug)]
struct Run {
    output_bte: Tensor,
    states: BTreeMap<Site, Tensor>,
}

impl<'m> Pass<'m> {
    /// Runs the student. With `recompute`, of every layer only its input is held, and the layer
    /// runs once more when the gradient reaches it (Chen et al. 2016, arXiv 1604.06174): memory of
    /// one layer instead of all, for a second forward pass.
    pub fn forward(
        model: &'m Transformer,
        input: Input<'m>,
        sites: &'m BTreeSet<Site>,
        recompute: bool,
    ) -> Result<Self> {
        let context = model.frame.context(
            0,
            input.ids_bt.size2()?.1,
            input.attention_mask_bt,
            input.positions_bt,
        )?;
        let mut pass = Pass {
            model,
            input,
            context,
            sites,
            steps: Vec::new(),
            turn: None,
            hidden_bte: Tensor::new(),
            states: BTreeMap::new(),
        };
        let mut x_bte = tch::no_grad(|| model.frame.embed(input, 0))?;
        for layer_idx in 0..model.blocks.len() {
            drop(pass.turn.take());
            pass.turn = Some(model.hold(layer_idx, Direction::Forward)?);
            x_bte = pass.go_on(&x_bte, recompute)?;
        }
        pass.hidden_bte = leaf(&pass.go_on(&x_bte, recompute)?)?;
        // One tensor under both names, so that its gradient is one.
        let hidden_bte = &pass.hidden_bte;
        pass.states
            .entry(Site::Last)
            .and_modify(|last| *last = hidden_bte.shallow_clone());
        Ok(pass)
    }

    /// Takes part in bringing layers for a pass, there and back, that other ranks make.
    pub fn stand_by(model: &Transformer, after_layer: AfterLayer) -> Result<()> {
        if !model.brings_layers() {
            return Ok(());
        }
        let mut turn = model.stand_by()?;
        for layer_idx in (0..model.blocks.len()).rev() {
            let _held = model.hold(layer_idx, Direction::Backward)?;
            drop(turn.take());
            after_layer(layer_idx)?;
        }
        Ok(())
    }

    /// The next step; what it gave, without a graph.
    fn go_on(&mut self, x_bte: &Tensor, recompute: bool) -> Result<Tensor> {
        let (step, input_bte) = (self.steps.len(), leaf(x_bte)?);
        let run = match recompute {
            true => tch::no_grad(|| self.run(step, &input_bte))?,
            false => self.run(step, &input_bte)?,
        };
        for (site, state) in &run.states {
            self.states.insert(*site, leaf(state)?);
        }
        let output_bte = run.output_bte.f_detach()?;
        let held = (!recompute).then_some(run);
        self.steps.push(Step { input_bte, held });
        Ok(output_bte)
    }

    fn run(&self, step: usize, input_bte: &Tensor) -> Result<Run> {
        let mut kept = Kept::at(self.sites);
        let output_bte = if step < self.model.blocks.len() {
            self.model
                .layer(step, input_bte, &self.context, &mut kept)?
        } else {
            self.model.last(input_bte.shallow_clone(), &mut kept)?
        };
        Ok(Run {
            output_bte,
            states: kept.states,
        })
    }

    /// Adds the gradient of a scalar made from the pass to the student's parameters.
    pub fn backward(mut self, scalar: &Tensor, after_layer: AfterLayer) -> Result<()> {
        scalar.f_backward()?;
        let n_layers = self.model.blocks.len();
        let mut gradient_bte = self.hidden_bte.f_grad()?;
        // The last hidden state is a leaf of its own.
        self.states.remove(&Site::Last);
        while let Some(step) = self.steps.pop() {
            let layer_idx = self.steps.len();
            let _held = match layer_idx < n_layers {
                true => Some(self.model.hold(layer_idx, Direction::Backward)?),
                false => None,
            };
            if layer_idx < n_layers {
                drop(self.turn.take());
            }
            gradient_bte = self.back(layer_idx, step, &gradient_bte)?;
            if layer_idx < n_layers {
                after_layer(layer_idx)?;
            }
        }
        if gradient_bte.defined() {
            let x_bte = self.model.frame.embed(self.input, 0)?;
            pull(&[(x_bte, gradient_bte)])?;
        }
        Ok(())
    }

    /// The gradient on the input of one step, from the one on its output and those on the states
    /// seen on the way.
    fn back(&self, idx: usize, step: Step, gradient_bte: &Tensor) -> Result<Tensor> {
        let Step { input_bte, held } = step;
        let run = match held {
            Some(run) => run,
            None => self.run(idx, &input_bte)?,
        };
        let mut parts = vec![(run.output_bte, gradient_bte.shallow_clone())];
        for (site, state) in run.states {
            if let Some(seen) = self.states.get(&site) {
                parts.push((state, seen.f_grad()?));
            }
        }
        pull(&parts)?;
        Ok(input_bte.f_grad()?)
    }
}

/// Takes ready gradients back into the graphs of what they are of: d/dx of sum(x · g) is g.
fn pull(parts: &[(Tensor, Tensor)]) -> Result<()> {
    let mut total: Option<Tensor> = None;
    for (x, gradient) in parts.iter().filter(|(_, gradient)| gradient.defined()) {
        let part = x.f_mul(gradient)?.f_sum(x.f_kind()?)?;
        total = Some(plus(total, part)?);
    }
    match total {
        Some(total) => Ok(total.f_backward()?),
        None => Ok(()),
    }
}

/// A sum so far and one more part.
pub(super) fn plus(so_far: Option<Tensor>, part: Tensor) -> Result<Tensor> {
    match so_far {
        Some(so_far) => Ok(so_far.f_add(&part)?),
        None => Ok(part),
    }
}

/// A teacher's numbers beside a student's of `kind`: no loss has to be told that the teacher
/// computes in less.
pub(super) fn at_least(x: Tensor, kind: Kind) -> Result<Tensor> {
    let is_narrow = x.f_kind()?.elt_size_in_bytes() < kind.elt_size_in_bytes();
    Ok(if is_narrow { x.f_to_kind(kind)? } else { x })
}

/// The same numbers, where a gradient stops.
pub(super) fn leaf(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_set_requires_grad(true)?)
}
