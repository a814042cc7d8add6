//! A step's gradients on their way to all ranks, while the backward pass goes on.

use minitron_comm::Work;
use tch::Tensor;

use super::optimizer::AdamW;
use super::pass::Pass;
use super::sharded::ShardedLayers;
use crate::ranks::{BUCKET_BYTES, Ranks, of_comm};
use minitron_core::error::{Present, Result};
use minitron_core::model::Transformer;

/// A small model's gradients leave in so many buckets: the first ones while there is something left
/// to compute.
const N_BUCKETS: usize = 8;

/// Sums gradients over the ranks, in buckets that leave as soon as they are full. All ranks send
/// the same buckets in the same order: the layers from the last to the first, then all else;
/// whoever has no gradient sends zeros.
#[derive(Debug)]
pub(super) struct Reduction<'a> {
    ranks: Ranks,
    /// Layers whose gradients are summed where their weights lie, after every pass.
    layers: Option<&'a ShardedLayers>,
    /// The optimiser's parameters by when their gradients are whole: each layer's, and the rest of
    /// each group.
    units: Vec<Vec<usize>>,
    n_layers: usize,
    n_sent: usize,
    bucket: Vec<Tensor>,
    n_bytes: usize,
    /// Most bytes of a bucket.
    capacity: usize,
    /// By parameter, what travels for it, and that it is not the gradient itself.
    stand_ins: Vec<(usize, Tensor)>,
    under_way: Vec<Work>,
}

impl<'a> Reduction<'a> {
    /// Before a step; the layers are those of the student.
    pub fn begin(optimizer: &AdamW, ranks: Ranks, layers: Option<&'a ShardedLayers>) -> Self {
        let (units, n_layers) = optimizer.units();
        let capacity = (optimizer.n_bytes() / N_BUCKETS).min(BUCKET_BYTES);
        Reduction {
            ranks,
            layers,
            units,
            n_layers,
            n_sent: 0,
            bucket: Vec::new(),
            n_bytes: 0,
            capacity,
            stand_ins: Vec::new(),
            under_way: Vec::new(),
        }
    }

    /// A pass has its part of a layer's gradients, and of those of all later ones; after the last
    /// pass they are whole.
    ///
    /// # Errors
    /// `Ranks` where one does not take part; so of all below.
    pub fn after_layer(&mut self, optimizer: &AdamW, layer: usize, is_last: bool) -> Result<()> {
        match (self.layers, is_last) {
            (Some(layers), _) => layers.add_up(layer),
            (None, true) => self.send_until(optimizer, self.n_layers.saturating_sub(layer)),
            (None, false) => Ok(()),
        }
    }

    /// A pass has its part of all of the student's.
    ///
    /// # Errors
    /// As [`Reduction::after_layer`].
    pub fn after_pass(&mut self, optimizer: &AdamW, is_last: bool) -> Result<()> {
        if !is_last {
            return Ok(());
        }
        self.send_until(optimizer, self.n_layers + 1)?;
        self.leave()
    }

    /// Takes part in a pass that other ranks make.
    ///
    /// # Errors
    /// As [`Reduction::after_layer`].
    pub fn stand_by(
        &mut self,
        student: &Transformer,
        optimizer: &AdamW,
        is_last: bool,
    ) -> Result<()> {
        let Some(layers) = self.layers else {
            return Ok(());
        };
        Pass::stand_by(student, &mut |idx| layers.add_up(idx))?;
        self.after_pass(optimizer, is_last)
    }

    /// All of them are.
    ///
    /// # Errors
    /// As [`Reduction::after_layer`].
    pub fn after_all(&mut self, optimizer: &AdamW) -> Result<()> {
        if let Some(layers) = self.layers {
            layers.settle()?;
        }
        self.send_until(optimizer, self.units.len())?;
        self.leave()
    }

    /// Waits for all sums. A gradient that no rank has stays away, as in one process.
    ///
    /// # Errors
    /// As [`Reduction::after_layer`].
    pub fn finish(self, optimizer: &AdamW) -> Result<()> {
        let mut has_any = Vec::new();
        for gradient in optimizer.gradients()? {
            has_any.push(f64::from(gradient.defined()));
        }
        self.ranks.greatest(&mut has_any)?;
        for work in self.under_way {
            work.wait().map_err(of_comm)?;
        }
        for (idx, sum) in self.stand_ins {
            if has_any.get(idx).is_some_and(|any| *any > 0.0) {
                optimizer.set_gradient(idx, &sum)?;
            }
        }
        Ok(())
    }

    fn send_until(&mut self, optimizer: &AdamW, n_units: usize) -> Result<()> {
        while self.n_sent < n_units.min(self.units.len()) {
            let unit = self.units.get(self.n_sent).present("a unit of gradients")?;
            for idx in unit.clone() {
                self.send(optimizer, idx)?;
            }
            self.n_sent += 1;
        }
        Ok(())
    }

    fn send(&mut self, optimizer: &AdamW, idx: usize) -> Result<()> {
        let gradient = optimizer.gradient(idx)?;
        let (travelling, is_stand_in) = match gradient {
            Some(gradient) if gradient.is_contiguous() => (gradient, false),
            Some(gradient) => (gradient.f_contiguous()?, true),
            None => (optimizer.no_gradient(idx)?, true),
        };
        if is_stand_in {
            self.stand_ins.push((idx, travelling.shallow_clone()));
        }
        let n_bytes = travelling.numel() * travelling.kind().elt_size_in_bytes();
        let is_of_type = |first: &Tensor| first.kind() == travelling.kind();
        let fits = self.n_bytes + n_bytes <= self.capacity;
        if !(fits && self.bucket.first().is_none_or(is_of_type)) {
            self.leave()?;
        }
        self.bucket.push(travelling);
        self.n_bytes += n_bytes;
        Ok(())
    }

    /// The bucket leaves as it is.
    fn leave(&mut self) -> Result<()> {
        let bucket = std::mem::take(&mut self.bucket);
        self.n_bytes = 0;
        if !bucket.is_empty() {
            let tensors: Vec<&Tensor> = bucket.iter().collect();
            self.under_way.push(self.ranks.start_sum(&tensors)?);
        }
        Ok(())
    }
}
