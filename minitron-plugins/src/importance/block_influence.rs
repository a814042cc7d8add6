use std::any::Any;

use minitron_core::blueprint::{DEPTH, PruneGroup};
use minitron_core::calibrate::{Observation, Site};
use minitron_core::contract::{Importance, Scorer};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How much a layer turns the residual stream: 1 − mean over windows and tokens of cos(before, after)
/// (arXiv 2407.14679, section 2.2). The cosine is taken in f64, since near 1 its complement would lose all digits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockInfluence {}

minitron_core::plugin! {
    Importance for BlockInfluence {
        tag: "block_influence",
        summary: "1 - cosine between the residual stream before and after a layer",
        source: "arXiv 2407.14679, section 2.2",
    }
}

/// Keeps the cosine defined for a zero vector; it then counts as 0.
const EPS: f64 = 1e-12;

#[typetag::serde(name = "block_influence")]
impl Importance for BlockInfluence {
    fn watch(&self, group: &PruneGroup) -> Vec<Site> {
        if group.kind() != DEPTH {
            return Vec::new();
        }
        (0..group.n_layers).flat_map(|layer| [Site::BlockInput(layer), Site::BlockOutput(layer)]).collect()
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        Ok(Box::new(BlockScorer { before: None, cosines: vec![0.0; group.n_units], counts: vec![0.0; group.n_units] }))
    }
}

#[derive(Debug)]
struct BlockScorer {
    /// The layer under way, and what went into it.
    before: Option<(usize, Tensor)>,
    cosines: Vec<f64>,
    counts: Vec<f64>,
}

impl Scorer for BlockScorer {
    fn observe(&mut self, observation: &Observation) -> Result<()> {
        match (observation.site, self.before.take()) {
            (Site::BlockInput(layer), _) => self.before = Some((layer, observation.x_btc.shallow_clone())),
            (Site::BlockOutput(layer), Some((begun, before))) if begun == layer => {
                let (x, y) = (before.f_to_kind(Kind::Double)?, observation.x_btc.f_to_kind(Kind::Double)?);
                let cosine_bt = Tensor::f_cosine_similarity(&x, &y, -1, EPS)?;
                if let (Some(sum), Some(count)) = (self.cosines.get_mut(layer), self.counts.get_mut(layer)) {
                    *sum += cosine_bt.f_sum(Kind::Double)?.f_double_value(&[])?;
                    *count += cosine_bt.numel() as f64;
                }
            }
            (site, _) => return Err(Error::Internal(format!("{site:?} was shown out of order"))),
        }
        Ok(())
    }

    fn merge(&mut self, other: &dyn Scorer) -> Result<()> {
        let other = other.as_any().downcast_ref::<Self>();
        let other = other.ok_or_else(|| Error::Internal("merged a scorer of another metric".into()))?;
        let add = |ours: &mut [f64], theirs: &[f64]| ours.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        add(&mut self.cosines, &other.cosines);
        add(&mut self.counts, &other.counts);
        Ok(())
    }

    fn finish(&self) -> Result<Vec<f32>> {
        Ok(self.cosines.iter().zip(&self.counts).map(|(sum, n)| (1.0 - sum / n.max(1.0)) as f32).collect())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
