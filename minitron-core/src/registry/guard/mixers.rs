//! The same for mixers that a plugin brings: they run long after the spec that holds them was
//! written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;

use super::{Held, Who};
use crate::contract::{Mixer, Observed, Rescale, RunMixer};
use crate::error::{Error, Result};
use crate::mixers::is_built_in;
use crate::model::{MixerContext, MixerState, PartWeights, Port, PortTap, Ports};
use crate::spec::{Active, Cost, Dim, ModelSpec, Norm, Role, dim_of_layer};

/// Puts a guard before every mixer of the plugin's own.
///
/// # Errors
/// `Plugin` for a mixer that panics where it is asked what it is.
pub(super) fn guard(who: Who, spec: &mut ModelSpec) -> Result<()> {
    let ModelSpec { layers, dims, .. } = spec;
    for (idx, layer) in layers.iter_mut().enumerate() {
        for part in layer
            .0
            .iter_mut()
            .filter(|part| !is_built_in(part.mixer.as_ref()))
        {
            let facts = who.run(|| {
                let size = &|kind: &str| size_in(idx, kind, dims);
                Ok(Facts::of(part.mixer.as_ref(), size))
            })?;
            let mixer = Held::new(Arc::clone(&part.mixer));
            part.mixer = Arc::new(GuardedMixer {
                who,
                mixer,
                facts,
                fault: Mutex::new(None),
            });
        }
    }
    Ok(())
}

/// The size of a kind in one layer.
fn size_in(layer: usize, kind: &str, dims: &BTreeMap<String, Dim>) -> usize {
    let of_layer = dims.get(&dim_of_layer(kind, layer));
    of_layer
        .or_else(|| dims.get(kind))
        .map_or(0, |dim| dim.size)
}

/// What a mixer says of itself, asked once, where an error can be the answer.
#[derive(Debug)]
struct Facts {
    name: &'static str,
    ports: Ports,
    observed: Vec<Observed>,
    shows: Vec<Port>,
    norms: Vec<(Role, Norm)>,
    norms_over_units: Vec<(Role, Port)>,
    cost: Cost,
    active: Option<Active>,
    states_hold_for: Option<usize>,
    is_absent: bool,
    obstacle: Option<String>,
}

impl Facts {
    fn of(mixer: &dyn Mixer, size: &dyn Fn(&str) -> usize) -> Self {
        Facts {
            name: mixer.name(),
            ports: mixer.ports(),
            observed: mixer.observed(),
            shows: mixer.shows(),
            norms: mixer.norms(),
            norms_over_units: mixer.norms_over_units(),
            cost: mixer.cost(size),
            active: mixer.active(),
            states_hold_for: mixer.states_hold_for(),
            is_absent: mixer.is_absent(),
            obstacle: mixer.obstacle(),
        }
    }
}

struct GuardedMixer {
    who: Who,
    mixer: Held<Arc<dyn Mixer>>,
    facts: Facts,
    /// What a question about costs ran into; loading says it.
    fault: Mutex<Option<String>>,
}

// Layers are told apart by what their mixers show.
impl std::fmt::Debug for GuardedMixer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.mixer.fmt(f)
    }
}

impl Mixer for GuardedMixer {
    fn name(&self) -> &'static str {
        self.facts.name
    }

    fn ports(&self) -> Ports {
        self.facts.ports.clone()
    }

    fn observed(&self) -> Vec<Observed> {
        self.facts.observed.clone()
    }

    fn shows(&self) -> Vec<Port> {
        self.facts.shows.clone()
    }

    fn norms(&self) -> Vec<(Role, Norm)> {
        self.facts.norms.clone()
    }

    fn norms_over_units(&self) -> Vec<(Role, Port)> {
        self.facts.norms_over_units.clone()
    }

    // Of other sizes than the model's own it may still panic: then what it costs at those stands
    // for it.
    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        self.who
            .run(|| Ok(self.mixer.get()?.cost(size)))
            .unwrap_or_else(|error| {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(said(error));
                self.facts.cost
            })
    }

    fn rescales(&self, kind: &str, kept: usize) -> Vec<Rescale> {
        self.who
            .run(|| Ok(self.mixer.get()?.rescales(kind, kept)))
            .unwrap_or_else(|error| {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(said(error));
                Vec::new()
            })
    }

    fn active(&self) -> Option<Active> {
        self.facts.active.clone()
    }

    fn fresh(&self, role: Role, draw: f64) -> Option<f64> {
        self.who
            .run(|| Ok(self.mixer.get()?.fresh(role, draw)))
            .unwrap_or_else(|error| {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(said(error));
                None
            })
    }

    fn states_hold_for(&self) -> Option<usize> {
        self.facts.states_hold_for
    }

    fn is_absent(&self) -> bool {
        self.facts.is_absent
    }

    fn obstacle(&self) -> Option<String> {
        self.facts.obstacle.clone()
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        if let Some(message) = self
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
        {
            return Err(self.who.error(message));
        }
        let mixer = self
            .who
            .run(|| self.mixer.get()?.load(weights).map(Held::new))?;
        Ok(Box::new(GuardedRunMixer {
            who: self.who,
            mixer,
        }))
    }
}

/// The words of an error that names the plugin anyway.
fn said(error: Error) -> String {
    match error {
        Error::Plugin { message, .. } => message,
        other => other.to_string(),
    }
}

#[derive(Debug)]
struct GuardedRunMixer {
    who: Who,
    mixer: Held<Box<dyn RunMixer>>,
}

impl RunMixer for GuardedRunMixer {
    fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        state: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        self.who
            .run(|| self.mixer.get()?.forward(x_bte, context, state, tap))
    }
}
