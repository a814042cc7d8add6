//! A training's text, in windows of its one length or, in its last steps, of another.

use std::cell::RefCell;
use std::sync::Arc;

use super::Training;
use super::start::WeightStart;
use crate::data::{BLOCK_TOKENS, DataLoader, LoaderOptions, Tokenizer};
use crate::jobs::context::seq_len_or_default;
use crate::train::{LongWindows, Passes, saved_cursor};
use minitron_core::error::Result;

impl Training<'_> {
    pub(super) fn loader(
        &self,
        start: &WeightStart,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<DataLoader> {
        let seq_len = seq_len_or_default(self.options.seq_len, &start.spec, tokenizer);
        let loader = self.loader_of(seq_len, tokenizer)?;
        self.context.warn_of_date(tokenizer);
        Ok(loader)
    }

    /// The text of the length stage, from its beginning.
    pub(super) fn long_loader(
        &self,
        start: &WeightStart,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<Option<DataLoader>> {
        let Some(stage) = self.options.length_stage else {
            return Ok(None);
        };
        // What no step can be divided into is refused before the text is read again.
        self.passes(start, tokenizer)?;
        let loader = self.loader_of(stage.seq_len, tokenizer);
        loader.map(Some).map_err(|e| e.at("length_stage"))
    }

    /// The length stage as the loop takes it.
    pub(super) fn long<'l>(
        &self,
        loader: Option<&'l RefCell<DataLoader>>,
        start: &WeightStart,
        tokenizer: &Tokenizer,
    ) -> Result<Option<LongWindows<'l>>> {
        let (Some(loader), Some(stage)) = (loader, self.options.length_stage) else {
            return Ok(None);
        };
        let passes = self.passes(start, tokenizer)?;
        Ok(passes.map(|passes| LongWindows {
            loader,
            share: stage.share,
            batch_size: passes.batch_size,
            accumulate: passes.accumulate,
        }))
    }

    fn loader_of(&self, seq_len: usize, tokenizer: &Arc<Tokenizer>) -> Result<DataLoader> {
        let (context, options) = (self.context, self.options);
        let options = LoaderOptions {
            reading: &options.reading(seq_len, context.seed),
            specs: options.data.as_slice(),
            tokenizer,
            registry: context.registry,
            block_tokens: BLOCK_TOKENS,
        };
        let cursor = if self.resume {
            saved_cursor(self.out_dir)
        } else {
            None
        };
        // The state may be damaged where it says the place: what is resumed in the end says it
        // again.
        DataLoader::open(&options, cursor.as_ref()).or_else(|error| match cursor {
            Some(_) => DataLoader::open(&options, None),
            None => Err(error),
        })
    }

    /// How a step of the length stage is divided.
    fn passes(&self, start: &WeightStart, tokenizer: &Tokenizer) -> Result<Option<Passes>> {
        let options = self.options;
        let seq_len = seq_len_or_default(options.seq_len, &start.spec, tokenizer);
        let of_step = (options.batch_size, options.accumulate);
        let stage = options.length_stage;
        stage.map(|it| it.passes(of_step, seq_len)).transpose()
    }
}
