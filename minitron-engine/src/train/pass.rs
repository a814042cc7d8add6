//! A student's forward pass, and the way of its gradient back through the layers.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};

use super::teacher::Kept;
use minitron_core::error::Result;
use minitron_core::model::{Input, MixerContext, NoTap, Site, Tap, Transformer};

/// What the backward pass is computed from. B batch, T tokens, E embed.
///
/// In either case a scalar that depends on `hidden_bte` and `states` is made first;
/// [`Pass::backward`] takes its gradient down to the parameters.
#[derive(Debug)]
pub(super) struct Pass<'m> {
    model: &'m Transformer,
    input: Input<'m>,
    context: MixerContext,
    sites: &'m BTreeSet<Site>,
    /// Each layer's input, where its inside is computed again; none where the graph of the whole
    /// pass is held.
    inputs: Option<Vec<Tensor>>,
    /// The last hidden state [B, T, E].
    pub hidden_bte: Tensor,
    /// States at the wanted sites.
    pub states: BTreeMap<Site, Tensor>,
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
        let mut kept = Kept::at(sites);
        let context = model.frame.context(
            0,
            input.ids_bt.size2()?.1,
            input.attention_mask_bt,
            input.positions_bt,
        )?;
        if !recompute {
            let hidden_bte = model.hidden(input, &mut kept, None)?;
            return Ok(Pass {
                model,
                input,
                context,
                sites,
                inputs: None,
                hidden_bte,
                states: kept.states,
            });
        }
        let _no_grad = tch::no_grad_guard();
        let mut outline = Outline {
            kept,
            last: model.blocks.len().checked_sub(1),
            inputs: Vec::new(),
        };
        let hidden_bte = leaf(&model.hidden(input, &mut outline, None)?)?;
        let Outline {
            kept, mut inputs, ..
        } = outline;
        if inputs.is_empty() {
            inputs.push(model.frame.embed(input, 0)?);
        }
        let mut states: BTreeMap<Site, Tensor> = kept
            .states
            .iter()
            .map(|(site, x)| Ok((*site, leaf(x)?)))
            .collect::<Result<_>>()?;
        // One tensor under both names, so that its gradient is one.
        states
            .entry(Site::Last)
            .and_modify(|last| *last = hidden_bte.shallow_clone());
        Ok(Pass {
            model,
            input,
            context,
            sites,
            inputs: Some(inputs),
            hidden_bte,
            states,
        })
    }

    /// Adds the gradient of a scalar made from the pass to the student's parameters.
    pub fn backward(self, scalar: &Tensor) -> Result<()> {
        scalar.f_backward()?;
        let Some(inputs) = &self.inputs else {
            return Ok(());
        };
        let gradient_bte = self.hidden_bte.f_grad()?;
        let mut gradient_bte = self.back(
            inputs.len().saturating_sub(1),
            inputs,
            &gradient_bte,
            |model, x_bte, _| model.last(x_bte.shallow_clone(), &mut NoTap),
        )?;
        for layer_idx in (0..self.model.blocks.len()).rev() {
            gradient_bte = self.back(layer_idx, inputs, &gradient_bte, |model, x_bte, kept| {
                model.layer(layer_idx, x_bte, &self.context, kept)
            })?;
        }
        if gradient_bte.defined() {
            let x_bte = self.model.frame.embed(self.input, 0)?;
            x_bte
                .f_mul(&gradient_bte)?
                .f_sum(x_bte.f_kind()?)?
                .f_backward()?;
        }
        Ok(())
    }

    /// The gradient on the input of one step, from the one on its output and those on the states
    /// seen on the way.
    fn back(
        &self,
        step: usize,
        inputs: &[Tensor],
        gradient_bte: &Tensor,
        run: impl Fn(&Transformer, &Tensor, &mut Kept) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(input_bte) = inputs.get(step) else {
            return Ok(Tensor::new());
        };
        let input_bte = leaf(input_bte)?;
        let mut kept = Kept::at(self.sites);
        let output_bte = run(self.model, &input_bte, &mut kept)?;
        let mut parts = vec![(output_bte, gradient_bte.shallow_clone())];
        for (site, state) in kept.states {
            if let Some(seen) = self.states.get(&site) {
                parts.push((state, seen.f_grad()?));
            }
        }
        // d/dx of sum(x · g) is g: how a ready gradient enters the graph.
        let mut total: Option<Tensor> = None;
        for (x, gradient) in parts.iter().filter(|(_, gradient)| gradient.defined()) {
            let part = x.f_mul(gradient)?.f_sum(x.f_kind()?)?;
            total = Some(plus(total, part)?);
        }
        if let Some(total) = total {
            total.f_backward()?;
        }
        Ok(input_bte.f_grad()?)
    }
}

/// Keeps what enters each layer, and what leaves the last one.
struct Outline<'s> {
    kept: Kept<'s>,
    last: Option<usize>,
    inputs: Vec<Tensor>,
}

impl Outline<'_> {
    fn holds(&self, site: Site) -> bool {
        match site {
            Site::LayerInput(_) => true,
            Site::LayerOutput(layer_idx) => Some(layer_idx) == self.last,
            _ => false,
        }
    }
}

impl Tap for Outline<'_> {
    fn wants(&self, site: Site) -> bool {
        self.holds(site) || self.kept.wants(site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        if self.holds(site) {
            self.inputs.push(x.shallow_clone());
        }
        if self.kept.wants(site) {
            self.kept.see(site, x)
        } else {
            Ok(())
        }
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
