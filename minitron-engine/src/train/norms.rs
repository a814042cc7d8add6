//! Norms of gradients, which lie on the device until a step reads its numbers.

use minitron_torch::foreach_norm;
use tch::{Device, Kind, Tensor};

use crate::ranks::Ranks;
use minitron_core::error::{Present, Result};

/// L2 norms of the gradients of one group of parameters, scalars in f32.
#[derive(Debug)]
pub(super) struct GradientNorms {
    /// Of gradients that are whole on every rank.
    whole: Vec<Tensor>,
    /// Of a rank's parts.
    apart: Vec<Tensor>,
    /// Whether the ranks bring parts.
    has_parts: bool,
}

impl GradientNorms {
    /// Of these gradients.
    pub fn of(whole: Vec<Tensor>, apart: Vec<Tensor>, has_parts: bool) -> Result<Self> {
        Ok(GradientNorms {
            whole: norms(whole)?,
            apart: norms(apart)?,
            has_parts,
        })
    }

    /// What is to be read, in the order that [`GradientNorms::whole_norm`] takes it.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        self.whole
            .iter()
            .chain(&self.apart)
            .map(|norm| norm.shallow_clone())
    }

    /// The norm of all of it, from what was read; of parts, all ranks bring theirs.
    pub fn whole_norm(&self, read: &mut dyn Iterator<Item = f64>, ranks: Ranks) -> Result<f64> {
        let sum = squares(read, self.whole.len())?;
        let mut of_parts = [squares(read, self.apart.len())?];
        if self.has_parts {
            ranks.add_up(&mut of_parts)?;
        }
        let [of_parts] = of_parts;
        Ok((sum + of_parts).sqrt())
    }
}

fn squares(read: &mut dyn Iterator<Item = f64>, n: usize) -> Result<f64> {
    let mut sum = 0.0;
    for _ in 0..n {
        let norm = read.next().present("a gradient's norm")?;
        sum += norm * norm;
    }
    Ok(sum)
}

/// One after the other on a CPU, all at once elsewhere.
fn norms(gradients: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let is_elsewhere = |gradient: &Tensor| gradient.device() != Device::Cpu;
    if gradients.iter().any(is_elsewhere) {
        return Ok(foreach_norm(&gradients)?);
    }
    let mut norms = Vec::with_capacity(gradients.len());
    for gradient in gradients {
        norms.push(gradient.f_to_kind(Kind::Float)?.f_norm()?);
    }
    Ok(norms)
}
