//! What a teacher says to a batch, whether it lies in memory or elsewhere. N rows, E embed, V vocab.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use tch::Tensor;

use crate::blueprint::Blueprint;
use crate::data::Targets;
use crate::error::{Error, Result};
use crate::model::{Site, Tap, Transformer};

/// A source of lessons. Nothing it gives out carries gradient.
pub trait Teacher: Debug {
    /// The teacher's shapes.
    fn blueprint(&self) -> &Blueprint;

    /// What it says to a batch: logits row by row where `with_logits`, and its states at `sites`.
    fn lesson<'a>(
        &'a mut self,
        targets: &Targets,
        with_logits: bool,
        sites: &BTreeSet<Site>,
    ) -> Result<Box<dyn Lesson + 'a>>;
}

/// What a teacher says to one batch.
pub trait Lesson: Debug {
    /// Logits [len, V] of some rows; the student's own are at hand for a teacher that remembers only the largest.
    fn logits(&self, start: i64, len: i64, student_nv: &Tensor) -> Result<Tensor>;

    /// States at a site that was asked for.
    fn states(&self, site: Site) -> Result<&Tensor>;
}

/// A teacher in memory.
#[derive(Debug)]
pub struct Loaded<'m>(pub &'m Transformer);

#[derive(Debug)]
struct Heard<'m> {
    model: &'m Transformer,
    hidden_ne: Option<Tensor>,
    states: BTreeMap<Site, Tensor>,
}

impl Teacher for Loaded<'_> {
    fn blueprint(&self) -> &Blueprint {
        &self.0.blueprint
    }

    fn lesson<'a>(
        &'a mut self,
        targets: &Targets,
        with_logits: bool,
        sites: &BTreeSet<Site>,
    ) -> Result<Box<dyn Lesson + 'a>> {
        let _no_grad = tch::no_grad_guard();
        let mut kept = Kept::at(sites);
        let hidden_bte = self.0.hidden(&targets.ids_bt, &mut kept, None)?;
        let hidden_ne = if with_logits { Some(targets.rows(&hidden_bte)?) } else { None };
        Ok(Box::new(Heard { model: self.0, hidden_ne, states: kept.states }))
    }
}

impl Lesson for Heard<'_> {
    fn logits(&self, start: i64, len: i64, _student_nv: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let hidden_ne = self.hidden_ne.as_ref().ok_or_else(|| Error::Internal("no logits were asked for".into()))?;
        self.model.logits(&hidden_ne.f_narrow(0, start, len)?)
    }

    fn states(&self, site: Site) -> Result<&Tensor> {
        self.states.get(&site).ok_or_else(|| Error::Internal(format!("the model has no {site:?}, which was asked for")))
    }
}

/// Keeps what passes the wanted sites.
#[derive(Debug)]
pub(super) struct Kept<'s> {
    sites: &'s BTreeSet<Site>,
    /// What was seen.
    pub states: BTreeMap<Site, Tensor>,
}

impl<'s> Kept<'s> {
    pub fn at(sites: &'s BTreeSet<Site>) -> Self {
        Kept { sites, states: BTreeMap::new() }
    }
}

impl Tap for Kept<'_> {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        self.states.insert(site, x.shallow_clone());
        Ok(())
    }
}
