//! Layers of which every rank keeps a part of the weights and gradients (ZeRO stage 3, Rajbhandari
//! et al. 2020, arXiv 1910.02054; FSDP, Zhao et al. 2023, arXiv 2304.11277). S values of a layer on
//! each of N ranks.

use std::cell::RefCell;
use std::rc::Rc;

use minitron_comm::Work;
use minitron_torch::shell::{bar, unbar};
use minitron_torch::{Shell, map_large_tensors};
use tch::{Device, Kind, Tensor};

use super::shard::{Cut, Shard};
use crate::ranks::{Ranks, of_comm};
use minitron_core::checkpoint::TensorSource;
use minitron_core::error::{Present, Result};
use minitron_core::model::{Direction, LayerWeights, LoadOptions, Parameter, Transformer};
use minitron_core::spec::ModelSpec;

/// The layers of a model. One is brought together before it runs and let go after, the next one
/// that way is on its way meanwhile: two at most are whole at a time. What a pass keeps of a layer
/// points at values whose memory goes, and is there again when the gradient comes. Gradients of a
/// layer are summed as soon as they are whole, and each rank keeps its part of the sum.
#[derive(Debug)]
pub struct ShardedLayers {
    ranks: Ranks,
    layers: RefCell<Vec<Layer>>,
    spare: Spare,
}

/// Room that was used before: taken anew for every layer, it would tear memory to pieces.
#[derive(Debug, Default)]
struct Spare(RefCell<Vec<Tensor>>);

#[derive(Debug)]
struct Layer {
    weights: Vec<Weight>,
    kind: Kind,
    device: Device,
    /// The rank's values [S].
    own: Tensor,
    /// Their gradient [S], where the model learns.
    own_gradient: Option<Tensor>,
    n_holders: usize,
    /// All values [N · S], which have memory while the layer is held.
    whole: Shell,
    /// All values [N · S] on their way.
    coming: Option<(Tensor, Work)>,
    /// The layer's whole gradient [N · S] while it is computed.
    gradient: Option<Tensor>,
    /// The rank's part of its sum [S] on the way, and what it is summed from.
    sum: Option<(Tensor, Tensor, Work)>,
}

#[derive(Debug)]
struct Weight {
    name: String,
    /// The model's own.
    tensor: Tensor,
    cut: Cut,
}

/// The rank's values of one weight, and their gradient; one-dimensional.
#[derive(Debug)]
pub(super) struct Apart {
    pub weight: Tensor,
    pub gradient: Tensor,
    pub cut: Cut,
}

impl ShardedLayers {
    /// A model whose layers are divided one by one as they are read.
    ///
    /// # Errors
    /// As [`Transformer::load`].
    pub fn load(
        source: &dyn TensorSource,
        spec: &ModelSpec,
        options: LoadOptions,
        ranks: Ranks,
    ) -> Result<(Transformer, Rc<Self>)> {
        if options.device == Device::Cpu {
            map_large_tensors();
        }
        let sharded = Rc::new(ShardedLayers {
            ranks,
            layers: RefCell::default(),
            spare: Spare::default(),
        });
        let shard = Shard::of(ranks);
        let mut model = Transformer::load_by_layer(source, spec, options, |_, parameters| {
            let layer = Layer::of(parameters, options, shard)?;
            sharded.layers.borrow_mut().push(layer);
            Ok(())
        })?;
        model.keep_layers_at(Rc::clone(&sharded) as Rc<dyn LayerWeights>);
        Ok((model, sharded))
    }

    /// The rank's values of a weight by name, where they are kept here.
    pub(super) fn apart(&self, name: &str) -> Result<Option<Apart>> {
        for layer in self.layers.borrow().iter() {
            let found = layer.weights.iter().find(|weight| weight.name == name);
            if let (Some(weight), Some(gradient)) = (found, &layer.own_gradient) {
                let (start, n) = weight.cut.kept();
                return Ok(Some(Apart {
                    weight: layer.own.f_narrow(0, start, n)?,
                    gradient: gradient.f_narrow(0, start, n)?,
                    cut: weight.cut,
                }));
            }
        }
        Ok(None)
    }

    /// A layer's gradient is whole: begins to sum it over the ranks, and ends the sum before.
    ///
    /// # Errors
    /// `Ranks` where one does not take part.
    pub(super) fn add_up(&self, layer_idx: usize) -> Result<()> {
        let mut layers = self.layers.borrow_mut();
        end_sums(&mut layers, &self.spare)?;
        layers
            .get_mut(layer_idx)
            .present("a sharded layer")?
            .begin_sum(self.ranks, &self.spare)
    }

    /// Gives back what is kept for further passes: something else needs the room.
    pub(super) fn make_way(&self) {
        self.spare.0.borrow_mut().clear();
    }

    /// Ends all sums of a step.
    ///
    /// # Errors
    /// As [`ShardedLayers::add_up`].
    pub(super) fn settle(&self) -> Result<()> {
        end_sums(&mut self.layers.borrow_mut(), &self.spare)
    }
}

impl LayerWeights for ShardedLayers {
    fn bring(&self, layer_idx: usize, direction: Direction) -> Result<()> {
        let mut layers = self.layers.borrow_mut();
        let layer = layers.get_mut(layer_idx).present("a sharded layer")?;
        layer.bring(self.ranks, &self.spare)?;
        let next = match direction {
            Direction::Forward => layer_idx.checked_add(1),
            Direction::Backward => {
                layer.make_room(&self.spare)?;
                layer_idx.checked_sub(1)
            }
        };
        match next.and_then(|next| layers.get_mut(next)) {
            Some(next) => next.call(self.ranks, &self.spare),
            None => Ok(()),
        }
    }

    fn leave(&self, layer_idx: usize) {
        if let Some(layer) = self.layers.borrow_mut().get_mut(layer_idx) {
            layer.leave(&self.spare);
        }
    }

    /// The rank's values, and two layers.
    fn n_bytes(&self) -> u64 {
        let layers = self.layers.borrow();
        let own = layers.iter().map(Layer::n_own_bytes);
        let widest = own.clone().max().unwrap_or(0);
        own.sum::<u64>() + 2 * widest * self.ranks.size() as u64
    }
}

impl Layer {
    fn of(parameters: &[Parameter], options: LoadOptions, shard: Shard) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let LoadOptions { device, kind, .. } = options;
        let sizes: Vec<i64> = parameters
            .iter()
            .map(|parameter| parameter.tensor.numel() as i64)
            .collect();
        let cuts = shard.cuts(&sizes);
        let stride = cuts.first().map_or(0, |cut| cut.stride());
        let own = Tensor::f_zeros([stride], (kind, device))?;
        let mut weights = Vec::with_capacity(parameters.len());
        for (parameter, cut) in parameters.iter().zip(cuts) {
            let (start, n) = cut.kept();
            own.f_narrow(0, start, n)?
                .f_copy_(&cut.own(&parameter.tensor.f_detach()?.f_view([-1i64])?)?)?;
            weights.push(Weight {
                name: parameter.name.clone(),
                tensor: parameter.tensor.shallow_clone(),
                cut,
            });
        }
        let own_gradient = match options.trainable {
            true => Some(own.f_zeros_like()?),
            false => None,
        };
        let n_whole = n_whole(&weights);
        let layer = Layer {
            whole: Shell::new(n_whole, &own)?,
            weights,
            kind,
            device,
            own,
            own_gradient,
            n_holders: 0,
            coming: None,
            gradient: None,
            sum: None,
        };
        for weight in &layer.weights {
            layer.hide(weight)?;
            if options.trainable {
                // A gradient that is there is added to where it lies.
                tch::with_grad(|| weight.tensor.f_sum(kind)?.f_backward())?;
                layer.take_away(&mut weight.tensor.f_grad()?)?;
            }
        }
        Ok(layer)
    }

    fn n_own_bytes(&self) -> u64 {
        self.own.numel() as u64 * self.kind.elt_size_in_bytes() as u64
    }

    /// Begins to bring all values, where nobody has.
    fn call(&mut self, ranks: Ranks, spare: &Spare) -> Result<()> {
        if self.n_holders == 0 && self.coming.is_none() {
            let all = spare.take(n_whole(&self.weights), &self.own)?;
            let work = ranks.start_gather(&all, &self.own)?;
            self.coming = Some((all, work));
        }
        Ok(())
    }

    fn bring(&mut self, ranks: Ranks, spare: &Spare) -> Result<()> {
        self.call(ranks, spare)?;
        if let Some((all, work)) = self.coming.take() {
            work.wait().map_err(of_comm)?;
            let all = self.whole.fill(all)?;
            for weight in &self.weights {
                weight.show(&mut weight.tensor.shallow_clone(), all)?;
                unbar(&weight.tensor)?;
            }
        }
        self.n_holders += 1;
        Ok(())
    }

    fn leave(&mut self, spare: &Spare) {
        self.n_holders = self.n_holders.saturating_sub(1);
        if self.n_holders > 0 {
            return;
        }
        let is_hidden = self.weights.iter().all(|weight| self.hide(weight).is_ok());
        // What cannot be let go stays; to bring it again is an error.
        if is_hidden && let Ok(Some(all)) = self.whole.empty() {
            spare.give(all);
        }
    }

    /// Leaves a weight its shape alone, and bars what graphs keep of its values.
    fn hide(&self, weight: &Weight) -> Result<()> {
        self.take_away(&mut weight.tensor.shallow_clone())?;
        Ok(bar(&weight.tensor)?)
    }

    /// Zeros, where the backward pass adds the layer's gradient.
    fn make_room(&mut self, spare: &Spare) -> Result<()> {
        if self.own_gradient.is_none() || self.gradient.is_some() {
            return Ok(());
        }
        let all = spare.take(n_whole(&self.weights), &self.own)?.f_zero_()?;
        for weight in &self.weights {
            weight.show(&mut weight.tensor.f_grad()?, &all)?;
        }
        self.gradient = Some(all);
        Ok(())
    }

    fn begin_sum(&mut self, ranks: Ranks, spare: &Spare) -> Result<()> {
        let Some(all) = self.gradient.take() else {
            return Ok(());
        };
        for weight in &self.weights {
            self.take_away(&mut weight.tensor.f_grad()?)?;
        }
        let own = spare.take(self.own.numel() as i64, &self.own)?;
        let work = ranks.start_sum_parts(&own, &all)?;
        self.sum = Some((own, all, work));
        Ok(())
    }

    fn end_sum(&mut self, spare: &Spare) -> Result<()> {
        let Some((own, all, work)) = self.sum.take() else {
            return Ok(());
        };
        work.wait().map_err(of_comm)?;
        if let Some(gradient) = &mut self.own_gradient {
            let _ = gradient.f_add_(&own)?;
        }
        spare.give(own);
        spare.give(all);
        Ok(())
    }

    /// Leaves a tensor its shape alone.
    fn take_away(&self, tensor: &mut Tensor) -> Result<()> {
        let nothing = Tensor::f_zeros([1], (self.kind, self.device))?;
        Ok(tensor.f_set_data(&nothing.f_expand(tensor.size(), false)?)?)
    }
}

impl Spare {
    /// Room for so many values of the type of `like`, whatever stands there.
    fn take(&self, n: i64, like: &Tensor) -> Result<Tensor> {
        let mut spare = self.0.borrow_mut();
        match spare.iter().position(|room| room.numel() as i64 == n) {
            Some(idx) => Ok(spare.swap_remove(idx)),
            None => Ok(Tensor::f_empty([n], (like.f_kind()?, like.device()))?),
        }
    }

    fn give(&self, room: Tensor) {
        self.0.borrow_mut().push(room);
    }
}

/// N · S.
fn n_whole(weights: &[Weight]) -> i64 {
    weights.first().map_or(0, |weight| weight.cut.all())
}

fn end_sums(layers: &mut [Layer], spare: &Spare) -> Result<()> {
    layers.iter_mut().try_for_each(|layer| layer.end_sum(spare))
}

impl Weight {
    /// Has a tensor of the weight's shape lie in `all` [N · S].
    fn show(&self, tensor: &mut Tensor, all: &Tensor) -> Result<()> {
        let (start, n) = self.cut.place();
        let values = all
            .f_narrow(0, start, n)?
            .f_view(tensor.size().as_slice())?;
        Ok(tensor.f_set_data(&values)?)
    }
}
