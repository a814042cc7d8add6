//! What a teacher says to a batch, whether it lies in memory or elsewhere. N rows, E embed, V
//! vocab.

mod cache;
mod cached;
mod drawn;
mod records;
mod shared;
mod streamed;

pub use cache::TeacherCache;
pub use cached::CachedTeacher;
pub use records::{CacheHeader, CacheType, Draws};
pub(in crate::train) use shared::{known_gradient, losses};
pub use streamed::StreamedTeacher;

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::{Duration, Instant};

use tch::Tensor;

use minitron_core::error::{Error, Result};
use minitron_core::model::{Frame, Site, Tap, Transformer};
use minitron_core::spec::ModelSpec;
use minitron_core::windows::Batch;

/// Gives outputs for batches. Nothing of them carries a gradient.
pub trait Teacher: Debug {
    /// The teacher's shapes.
    fn spec(&self) -> &ModelSpec;

    /// What it says to a batch: logits row by row where `with_logits`, and its states at `sites`.
    fn forward<'a>(
        &'a mut self,
        batch: &Batch,
        with_logits: bool,
        sites: &BTreeSet<Site>,
    ) -> Result<Box<dyn TeacherOutput + 'a>>;

    /// Bytes that it keeps in memory besides a batch's activations.
    fn kept_bytes(&self) -> u64;

    /// Takes part in a pass that other ranks make, where it is divided among them.
    fn stand_by(&self) -> Result<()> {
        Ok(())
    }

    /// Makes what it has learned on the way last; called before a checkpoint is written.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What a teacher says to one batch.
pub trait TeacherOutput: Debug {
    /// Logits [len, V] of some rows; the student's own are at hand for a teacher that remembers
    /// only the largest. V may be another number than the student's.
    fn logits(&self, start: i64, len: i64, student_nv: &Tensor) -> Result<Tensor>;

    /// States at a site that was asked for.
    fn states(&self, site: Site) -> Result<&Tensor>;

    /// Several students will ask: what was worked out once is kept, within bounds.
    fn keep(&mut self) {}

    /// Time that logits have taken since the batch began, and time that kept ones spared.
    fn took(&self) -> (Duration, Duration) {
        (Duration::ZERO, Duration::ZERO)
    }
}

/// Most bytes of logits that an output keeps for further students.
const KEPT_BYTES: usize = 1 << 30;

/// A teacher in memory, its own or somebody else's.
#[derive(Debug)]
pub struct InMemoryTeacher<M>(pub M);

/// By first row and number of rows, with the time that they took.
type KeptLogits = BTreeMap<(i64, i64), (Tensor, Duration)>;

/// What a model said that ran: its last hidden states at the predicting rows, and what turns them
/// into logits.
#[derive(Debug)]
struct DenseOutput<'m> {
    head: Option<&'m Frame>,
    hidden_ne: Option<Tensor>,
    states: BTreeMap<Site, Tensor>,
    /// Logits by their rows, where they are kept, with the time that they took.
    kept: Option<RefCell<KeptLogits>>,
    took: Cell<Duration>,
    spared: Cell<Duration>,
}

impl<'m> DenseOutput<'m> {
    fn new(
        head: Option<&'m Frame>,
        hidden_ne: Option<Tensor>,
        states: BTreeMap<Site, Tensor>,
    ) -> Self {
        DenseOutput {
            head,
            hidden_ne,
            states,
            kept: None,
            took: Cell::default(),
            spared: Cell::default(),
        }
    }
}

impl<M: Borrow<Transformer> + Debug> Teacher for InMemoryTeacher<M> {
    fn kept_bytes(&self) -> u64 {
        self.0.borrow().n_bytes()
    }

    fn stand_by(&self) -> Result<()> {
        self.0.borrow().stand_by().map(drop)
    }

    fn spec(&self) -> &ModelSpec {
        &self.0.borrow().spec
    }

    fn forward<'a>(
        &'a mut self,
        batch: &Batch,
        with_logits: bool,
        sites: &BTreeSet<Site>,
    ) -> Result<Box<dyn TeacherOutput + 'a>> {
        let _no_grad = tch::no_grad_guard();
        let mut kept = Kept::at(sites);
        let model = self.0.borrow();
        let hidden_bte = model.hidden(batch.input(), &mut kept, None)?;
        let hidden_ne = if with_logits {
            Some(batch.rows(&hidden_bte)?)
        } else {
            None
        };
        Ok(Box::new(DenseOutput::new(
            Some(&model.frame),
            hidden_ne,
            kept.states,
        )))
    }
}

impl TeacherOutput for DenseOutput<'_> {
    fn logits(&self, start: i64, len: i64, _student_nv: &Tensor) -> Result<Tensor> {
        if let Some((logits_nv, took)) = self.kept.as_ref().and_then(|kept| {
            let kept = kept.borrow();
            kept.get(&(start, len))
                .map(|(logits_nv, took)| (logits_nv.shallow_clone(), *took))
        }) {
            self.spared.set(self.spared.get() + took);
            return Ok(logits_nv);
        }
        let (_no_grad, begin) = (tch::no_grad_guard(), Instant::now());
        let (Some(head), Some(hidden_ne)) = (self.head, &self.hidden_ne) else {
            return Err(Error::Internal("no logits were asked for".into()));
        };
        let logits_nv = head.logits(&hidden_ne.f_narrow(0, start, len)?)?;
        let took = begin.elapsed();
        self.took.set(self.took.get() + took);
        if let Some(kept) = &self.kept {
            let mut kept = kept.borrow_mut();
            let n_bytes: usize = kept.values().map(|(x, _)| bytes_of(x)).sum();
            if n_bytes + bytes_of(&logits_nv) <= KEPT_BYTES {
                kept.insert((start, len), (logits_nv.shallow_clone(), took));
            }
        }
        Ok(logits_nv)
    }

    fn keep(&mut self) {
        self.kept.get_or_insert_default();
    }

    fn took(&self) -> (Duration, Duration) {
        (self.took.get(), self.spared.get())
    }

    fn states(&self, site: Site) -> Result<&Tensor> {
        self.states.get(&site).ok_or_else(|| {
            Error::Internal(format!("the model has no {site:?}, which was asked for"))
        })
    }
}

/// Keeps what passes the wanted sites.
#[derive(Debug)]
pub(in crate::train) struct Kept<'s> {
    sites: &'s BTreeSet<Site>,
    /// What was seen.
    pub states: BTreeMap<Site, Tensor>,
}

impl<'s> Kept<'s> {
    pub fn at(sites: &'s BTreeSet<Site>) -> Self {
        Kept {
            sites,
            states: BTreeMap::new(),
        }
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

fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
