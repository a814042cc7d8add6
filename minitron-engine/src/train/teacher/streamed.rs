//! A teacher larger than memory: its layers are read one after the other for every batch.

use std::collections::BTreeSet;
use std::fmt;

use tch::{Device, Tensor};

use super::{DenseOutput, Kept, Teacher, TeacherOutput};
use minitron_core::checkpoint::TensorSource;
use minitron_core::error::Result;
use minitron_core::model::{Frame, LayerStore, LoadOptions, Site, hidden_of};
use minitron_core::spec::{ModelSpec, Sizes};
use minitron_core::windows::Batch;

/// Holds the output head, of the token table the rows of the batch, and one layer at a time; says
/// the same as the same teacher in memory. Reading costs as many bytes a batch as the layers have.
pub struct StreamedTeacher<'s> {
    source: &'s dyn TensorSource,
    spec: &'s ModelSpec,
    options: LoadOptions,
    head: Option<Frame>,
}

impl<'s> StreamedTeacher<'s> {
    /// A teacher behind a source that [`ModelSpec::check`] has accepted.
    pub fn new(source: &'s dyn TensorSource, spec: &'s ModelSpec, options: LoadOptions) -> Self {
        StreamedTeacher {
            source,
            spec,
            options: LoadOptions {
                trainable: false,
                ..options
            },
            head: None,
        }
    }

    fn frame(&self, tokens: &BTreeSet<u32>, with_head: bool) -> Result<Frame> {
        Frame::open(self.source, self.spec, self.options, tokens, with_head)
    }
}

impl fmt::Debug for StreamedTeacher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("StreamedTeacher")
            .field("architecture", &self.spec.architecture)
            .finish_non_exhaustive()
    }
}

impl Teacher for StreamedTeacher<'_> {
    /// The head and the largest layer.
    fn kept_bytes(&self) -> u64 {
        let spec = self.spec;
        let whole = spec.n_params();
        let layers = spec.n_non_embedding_at(&Sizes::new());
        let tables = if spec.options.tied { 1 } else { 2 };
        let widest = (0..spec.n_layers())
            .map(|layer| spec.n_layer_params(layer))
            .max()
            .unwrap_or(0);
        let n = (whole - layers) / tables + widest;
        n * self.options.kind.elt_size_in_bytes() as u64
    }

    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn forward<'a>(
        &'a mut self,
        batch: &Batch,
        with_logits: bool,
        sites: &BTreeSet<Site>,
    ) -> Result<Box<dyn TeacherOutput + 'a>> {
        let _no_grad = tch::no_grad_guard();
        let tokens = tokens_of(&batch.ids_bt)?;
        if with_logits && self.head.is_none() {
            self.head = Some(self.frame(&tokens.iter().take(1).copied().collect(), true)?);
        }
        let frame = self.frame(&tokens, false)?;
        let mut kept = Kept::at(sites);
        let store = LayerStore::Stored {
            source: self.source,
            spec: self.spec,
            options: self.options,
        };
        let hidden_bte = hidden_of(&store, &frame, batch.input(), &mut kept, None)?;
        let hidden_ne = if with_logits {
            Some(batch.rows(&hidden_bte)?)
        } else {
            None
        };
        Ok(Box::new(DenseOutput::new(
            self.head.as_ref(),
            hidden_ne,
            kept.states,
        )))
    }
}

/// The tokens of a batch.
fn tokens_of(ids_bt: &Tensor) -> Result<BTreeSet<u32>> {
    let ids = Vec::<i64>::try_from(ids_bt.f_to_device(Device::Cpu)?.f_reshape([-1i64])?)?;
    Ok(ids
        .into_iter()
        .filter_map(|id| u32::try_from(id).ok())
        .collect())
}
