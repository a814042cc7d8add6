//! A teacher whose words are kept on disk: it runs once for every window, and is not even loaded
//! where all are there.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::cache::TeacherCache;
use super::drawn::{
    DrawnOutput, LEAST_LOG_P, Window, drawn_rows, flat_on_cpu, no_states, uniforms,
};
use super::records::{CachedRows, Key};
use super::{Teacher, TeacherOutput};
use minitron_core::error::{Error, Present, Result};
use minitron_core::model::{Site, row_chunks};
use minitron_core::progress::Progress;
use minitron_core::spec::ModelSpec;
use minitron_core::windows::Batch;

/// Loads the teacher at the first window that the cache lacks.
pub type Loader<'a> = Box<dyn FnOnce() -> Result<Box<dyn Teacher + 'a>> + 'a>;

/// A cache in front of a teacher. A batch that lacks a window runs whole, so that what is stored
/// does not depend on what was there before; outputs are read from what is stored in either case.
pub struct CachedTeacher<'a> {
    spec: &'a ModelSpec,
    kind: Kind,
    cache: TeacherCache,
    loader: Option<Loader<'a>>,
    teacher: Option<Box<dyn Teacher + 'a>>,
    progress: &'a dyn Progress,
    has_warned: bool,
}

impl<'a> CachedTeacher<'a> {
    /// A cache in front of the teacher of this spec, which computes in `kind`.
    pub fn new(
        spec: &'a ModelSpec,
        kind: Kind,
        cache: TeacherCache,
        loader: Loader<'a>,
        progress: &'a dyn Progress,
    ) -> Self {
        CachedTeacher {
            spec,
            kind,
            cache,
            loader: Some(loader),
            teacher: None,
            progress,
            has_warned: false,
        }
    }

    fn teacher(&mut self) -> Result<&mut (dyn Teacher + 'a)> {
        if let Some(loader) = self.loader.take() {
            self.teacher = Some(loader()?);
        }
        self.teacher
            .as_deref_mut()
            .ok_or_else(|| Error::Internal("the teacher could not be loaded before".into()))
    }

    fn holds_all(&self, windows: &[Window]) -> bool {
        windows.iter().all(|window| self.cache.holds(&window.key))
    }

    /// Runs the teacher on a batch and stores the windows that are not there yet; returns those
    /// that cannot be.
    fn listen(&mut self, batch: &Batch, windows: &[Window]) -> Result<HashMap<Key, CachedRows>> {
        let (header, vocab) = (self.cache.header().clone(), self.spec.options.vocab);
        let n_shared = header.vocab as i64;
        let of_draws = header.draws.map(|draws| uniforms(draws, windows));
        let mut all = CachedRows::default();
        {
            let output = self.teacher()?.forward(batch, true, &BTreeSet::new())?;
            let nothing = Tensor::new();
            let device = batch.ids_bt.device();
            for (start, len) in row_chunks(batch.n_rows(), vocab, device) {
                let logits_nv = cut(&output.logits(start, len, &nothing)?, n_shared)?;
                match &of_draws {
                    Some(numbers) => {
                        let n = header.n_ids();
                        let range = start as usize * n..(start + len) as usize * n;
                        let numbers = numbers.get(range).present("the numbers of some rows")?;
                        drawn_rows(&logits_nv, numbers, &mut all)?;
                    }
                    None => top_rows(&logits_nv, header.top_k as i64, &mut all)?,
                }
            }
        }
        let mut unstored = HashMap::new();
        for window in windows {
            let rows = window.first_row..window.first_row + window.n_rows;
            let part = header.part(&all, rows)?;
            if !self.cache.holds(&window.key) && !self.cache.append(window.key, &part)? {
                unstored.insert(window.key, self.cache.stored(&part)?);
            }
        }
        if !unstored.is_empty() && !std::mem::replace(&mut self.has_warned, true) {
            self.progress
                .warn("teacher cache: another run writes to it; this one adds nothing");
        }
        Ok(unstored)
    }
}

impl fmt::Debug for CachedTeacher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("CachedTeacher")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Teacher for CachedTeacher<'_> {
    /// Nothing before a window is missing; of a cache that is empty, the first one will.
    fn kept_bytes(&self) -> u64 {
        match &self.teacher {
            Some(teacher) => teacher.kept_bytes(),
            None if self.cache.is_empty() => {
                self.spec.n_params() * self.kind.elt_size_in_bytes() as u64
            }
            None => 0,
        }
    }

    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn forward<'l>(
        &'l mut self,
        batch: &Batch,
        with_logits: bool,
        sites: &BTreeSet<Site>,
    ) -> Result<Box<dyn TeacherOutput + 'l>> {
        if !sites.is_empty() || !with_logits {
            return Err(Error::Internal("a teacher cache holds no states".into()));
        }
        let windows = windows_of(batch)?;
        if !self.holds_all(&windows) {
            // Another rank may have asked meanwhile.
            self.cache.refresh()?;
        }
        let unstored = if !self.holds_all(&windows) {
            self.listen(batch, &windows)?
        } else {
            HashMap::new()
        };
        let mut rows = CachedRows::default();
        for window in &windows {
            if !self.cache.read(&window.key, &mut rows)?
                && let Some(part) = unstored.get(&window.key)
            {
                rows.extend(part);
            }
        }
        let (n_rows, k) = (batch.n_rows(), self.cache.header().n_ids() as i64);
        if rows.ids.len() as i64 != n_rows * k {
            return Err(Error::Internal(format!(
                "{} cached ids for {n_rows} rows of {k}",
                rows.ids.len()
            )));
        }
        let device = batch.ids_bt.device();
        let ids: Vec<i64> = rows.ids.iter().map(|&id| i64::from(id)).collect();
        let ids_nk = Tensor::f_from_slice(&ids)?
            .f_view([n_rows, k])?
            .f_to_device(device)?;
        if self.cache.header().draws.is_some() {
            let vocab = self.cache.header().vocab as i64;
            return Ok(Box::new(DrawnOutput { ids_nk, vocab }));
        }
        Ok(Box::new(CachedOutput {
            ids_nk,
            log_p_nk: Tensor::f_from_slice(&rows.log_p)?
                .f_view([n_rows, k])?
                .f_to_device(device)?,
            log_tail_n1: Tensor::f_from_slice(&rows.log_tail)?
                .f_view([n_rows, 1])?
                .f_to_device(device)?,
            n_shared: self.cache.header().vocab as i64,
            is_whole: k as usize >= self.cache.header().vocab,
        }))
    }

    fn settle(&mut self) -> Result<()> {
        self.cache.sync()
    }
}

/// What the cache holds of one batch. N rows, K stored probabilities, V ids that both models have.
#[derive(Debug)]
struct CachedOutput {
    n_shared: i64,
    ids_nk: Tensor,
    log_p_nk: Tensor,
    log_tail_n1: Tensor,
    is_whole: bool,
}

impl TeacherOutput for CachedOutput {
    /// Log-probabilities [len, V]: the stored ones, and the mass of the rest divided as the student
    /// divides its own,
    ///
    /// ```text
    /// p_v = tail · q_v / Σ_{u not stored} q_u    v not stored; q = softmax(student), no gradient
    /// ```
    /// With it KL(p ‖ q) and its gradient are those of the k stored tokens and one more that stands
    /// for all others.
    fn logits(&self, start: i64, len: i64, student_nv: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let ids_nk = self.ids_nk.f_narrow(0, start, len)?;
        let log_p_nk = self.log_p_nk.f_narrow(0, start, len)?;
        let log_tail_n1 = self.log_tail_n1.f_narrow(0, start, len)?;
        let log_q_nv = cut(student_nv, self.n_shared)?
            .f_detach()?
            .f_to_kind(Kind::Float)?
            .f_log_softmax(-1, Kind::Float)?;
        if self.is_whole {
            return Ok(log_q_nv.f_scatter(-1, &ids_nk, &log_p_nk)?);
        }
        let stored = Tensor::f_full_like(&log_p_nk, f64::NEG_INFINITY)?;
        let log_rest_n1 = log_q_nv
            .f_scatter(-1, &ids_nk, &stored)?
            .f_logsumexp([-1i64].as_slice(), true)?;
        let shift_n1 = log_tail_n1.f_sub(&log_rest_n1)?.f_clamp_max(-LEAST_LOG_P)?;
        Ok(log_q_nv
            .f_add(&shift_n1)?
            .f_clamp_min(LEAST_LOG_P)?
            .f_scatter(-1, &ids_nk, &log_p_nk)?)
    }

    fn states(&self, site: Site) -> Result<&Tensor> {
        no_states(site)
    }
}

/// The first ids alone, where there are more.
fn cut(logits_nv: &Tensor, n_ids: i64) -> Result<Tensor> {
    match logits_nv.size().last() {
        Some(&width) if width > n_ids => Ok(logits_nv.f_narrow(-1, 0, n_ids)?),
        _ => Ok(logits_nv.shallow_clone()),
    }
}

/// The largest k of every row of logits [N, V], and the mass of the others.
fn top_rows(logits_nv: &Tensor, k: i64, into: &mut CachedRows) -> Result<()> {
    let log_p_nv = logits_nv
        .f_to_kind(Kind::Float)?
        .f_log_softmax(-1, Kind::Float)?;
    let (log_p_nk, ids_nk) = log_p_nv.f_topk(k, -1, true, true)?;
    let stored = Tensor::f_full_like(&log_p_nk, f64::NEG_INFINITY)?;
    let log_tail_n = log_p_nv
        .f_scatter(-1, &ids_nk, &stored)?
        .f_logsumexp([-1i64].as_slice(), false)?;
    let log_tail_n = log_tail_n.f_clamp_min(LEAST_LOG_P)?;
    let ids = Vec::<i64>::try_from(flat_on_cpu(&ids_nk)?)?;
    into.ids.extend(ids.into_iter().map(|id| id as u32));
    let log_p = Vec::<f32>::try_from(flat_on_cpu(&log_p_nk)?)?;
    into.log_p.extend(log_p);
    let log_tail = Vec::<f32>::try_from(flat_on_cpu(&log_tail_n)?)?;
    into.log_tail.extend(log_tail);
    Ok(())
}

/// Keys of a batch's windows, in order: digests of the tokens that are there, the positions that
/// predict, and where documents begin if attention stays inside them.
fn windows_of(batch: &Batch) -> Result<Vec<Window>> {
    let mut windows: Vec<Window> = Vec::new();
    for window in batch.windows()? {
        let mut hasher = Sha256::new();
        // Documents where they are told apart alone, so that keys of before are found.
        let documents = Some(window.documents.as_slice()).filter(|documents| !documents.is_empty());
        for word in [window.tokens.as_slice(), &window.positions]
            .into_iter()
            .chain(documents)
        {
            hasher.update((word.len() as u64).to_le_bytes());
            word.iter()
                .for_each(|number| hasher.update(number.to_le_bytes()));
        }
        let digest = hasher.finalize();
        let key = digest
            .get(..16)
            .and_then(|half| half.try_into().ok())
            .present("half of a digest")?;
        let first_row = windows
            .last()
            .map_or(0, |before| before.first_row + before.n_rows);
        windows.push(Window {
            key,
            first_row,
            n_rows: window.positions.len(),
        });
    }
    Ok(windows)
}
