//! Training windows without end: read, tokenised and shuffled block by block while training goes
//! on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::block::{Source, Start, TokenBlock};
use super::documents::DataSources;
use super::identity;
use super::mixture::Mixture;
use super::spec::{DataSpec, Reading};
use super::stream::{SourceCursor, SourceStream, StartingStream};
use super::text_options::Pack;
use super::tokenizer::Tokenizer;
use minitron_core::error::{Error, Present, Result};
use minitron_core::registry::Registry;
use minitron_core::spec::Options;
use minitron_core::windows::{Sample, Tokenize, Windows, fits};

/// Most tokens of a block: 64 MiB of ids.
pub const BLOCK_TOKENS: usize = 1 << 24;

/// What a loader is made of.
#[derive(Debug, Clone, Copy)]
pub struct LoaderOptions<'a> {
    /// Fields, lengths, packing, seed; `max_windows` does not apply.
    pub reading: &'a Reading,
    /// One source, or where they have weights, one each.
    pub specs: &'a [DataSpec],
    /// Turns text into tokens.
    pub tokenizer: &'a Arc<Tokenizer>,
    /// Finds corpora.
    pub registry: &'a Registry,
    /// Most tokens of a block, [`BLOCK_TOKENS`] but in tests.
    pub block_tokens: usize,
}

impl LoaderOptions<'_> {
    /// Sources with their weights.
    fn all_sources(&self) -> Result<(Vec<DataSources>, Vec<f64>)> {
        if self.reading.seq_len < 2 {
            return Err(Error::Recipe(format!(
                "seq_len: expected at least 2 tokens, got {}",
                self.reading.seq_len
            )));
        }
        self.reading
            .text
            .check(self.tokenizer.special_tokens().is_some())?;
        let weights: Vec<f64> = self.specs.iter().filter_map(|spec| spec.weight).collect();
        if weights.is_empty() {
            return Ok((vec![self.sources(self.specs)?], vec![1.0]));
        }
        if let Some(bare) = self.specs.iter().find(|spec| spec.weight.is_none()) {
            return Err(Error::Recipe(format!(
                "data: `{bare}` has no weight, others do; give each one, as in 0.7*web.jsonl, or \
                 none"
            )));
        }
        let mut all_sources = Vec::with_capacity(self.specs.len());
        for spec in self.specs.chunks(1) {
            all_sources.push(self.sources(spec)?);
        }
        Ok((all_sources, weights))
    }

    fn sources(&self, specs: &[DataSpec]) -> Result<DataSources> {
        DataSources::new(specs, self.reading, self.registry)
    }
}

/// Where a loader stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Digest of the data.
    pub digest: String,
    /// Of the loader when it was new; later blocks may have another.
    pub mean_width: usize,
    /// Each source's place.
    #[serde(rename = "lanes")]
    pub streams: Vec<SourceCursor>,
}

/// An endless, deterministic sequence of windows.
///
/// Each source's documents are read in order, packed into windows and collected into blocks of at
/// most [`BLOCK_TOKENS`] tokens that never cross the end of an epoch. A block is visited in a
/// permutation that follows from seed, source, epoch and block alone; an epoch of the first source
/// that fits one block, in the order of [`super::Order`]. A mixture takes from each source its
/// share.
///
/// A thread per source prepares the next block while the current one is trained on, and waits with
/// it: a source holds two blocks at most, whatever the size of the data. An epoch of one block is
/// kept instead of read again.
#[derive(Debug)]
pub struct DataLoader {
    streams: Vec<SourceStream>,
    mixture: Mixture,
    digest: String,
    mean_width: usize,
    max_positions: usize,
}

impl DataLoader {
    /// Opens the data, at the place of a cursor where one is given, and waits for the first block
    /// of each source.
    ///
    /// # Errors
    /// `Recipe` for weights on some of the data only, `Data` when a source holds less than one
    /// window, or is not what the cursor was taken from.
    pub fn open(options: &LoaderOptions, cursor: Option<&Cursor>) -> Result<Self> {
        let _span = tracing::info_span!("read data").entered();
        let (all_sources, weights) = options.all_sources()?;
        let reading = options.reading;
        let packs: Vec<Pack> = all_sources
            .iter()
            .map(|sources| sources.pack(&reading.text))
            .collect::<Result<_>>()?;
        let digest = identity::of(
            &all_sources,
            &packs,
            reading,
            options.tokenizer,
            options.block_tokens,
        )?;
        let cursor = cursor
            .filter(|cursor| cursor.digest == digest && cursor.streams.len() == all_sources.len());
        let mut starting = Vec::new();
        for (idx, (sources, pack)) in all_sources.into_iter().zip(packs).enumerate() {
            let source = Arc::new(Source {
                sources,
                tokenizer: options.tokenizer.clone(),
                pack,
                wants: reading.wants(pack),
                inside_documents: reading.is_inside_documents(),
                seq_len: reading.seq_len,
                block_tokens: options.block_tokens,
                seed: reading.seed,
                idx,
            });
            let place = cursor.and_then(|cursor| cursor.streams.get(idx)).copied();
            starting.push(StartingStream::begin(source, place)?);
        }
        // All of them are at work by now.
        let mut streams = Vec::with_capacity(starting.len());
        for stream in starting {
            streams.push(stream.open()?);
        }
        Ok(DataLoader::of(
            streams,
            Mixture::new(&weights),
            digest,
            cursor.map(|cursor| cursor.mean_width),
        ))
    }

    /// The same windows in every epoch, in the order of [`super::Order`].
    pub fn of_windows(windows: Arc<Windows>, seed: u64) -> Self {
        let digest = windows.digest().to_owned();
        let block = TokenBlock::new(Start::default(), windows, true, seed, 0);
        let stream = SourceStream::of_block(block, seed);
        DataLoader::of(vec![stream], Mixture::new(&[1.0]), digest, None)
    }

    fn of(
        streams: Vec<SourceStream>,
        mixture: Mixture,
        digest: String,
        mean_width: Option<usize>,
    ) -> Self {
        let widths = streams
            .iter()
            .map(|stream| stream.block.windows.mean_width() as f64);
        let mean = mixture.average(widths).ceil() as usize;
        DataLoader {
            mean_width: mean_width.unwrap_or(mean),
            streams,
            mixture,
            digest,
            max_positions: usize::MAX,
        }
    }

    /// The next `n_windows` windows.
    ///
    /// # Errors
    /// What reading or tokenising ahead met; `Recipe` for a window beyond the positions of a model
    /// that was checked.
    pub fn take(&mut self, n_windows: usize) -> Result<Vec<Sample>> {
        (0..n_windows).map(|_| self.next_piece()).collect()
    }

    fn next_piece(&mut self) -> Result<Sample> {
        let n_totals: Vec<u64> = self.streams.iter().map(|stream| stream.n_total).collect();
        let idx = self.mixture.pick(&n_totals);
        let stream = self
            .streams
            .get_mut(idx)
            .ok_or_else(|| Error::Internal("a mixture of nothing".into()))?;
        let sample = stream.next_piece()?;
        check_width(stream, &sample, self.max_positions)?;
        Ok(sample)
    }

    /// The windows that come next, and stay next: at most `n_windows`, fewer where a source would
    /// need its next block.
    ///
    /// # Errors
    /// As [`DataLoader::take`], of windows beyond the positions of a model.
    pub fn peek(&self, n_windows: usize) -> Result<Vec<Sample>> {
        let mut n_totals: Vec<u64> = self.streams.iter().map(|stream| stream.n_total).collect();
        let mut n_ahead = vec![0; self.streams.len()];
        let mut samples = Vec::new();
        for _ in 0..n_windows {
            let idx = self.mixture.pick(&n_totals);
            let stream = self.streams.get(idx).present("a source of a mixture")?;
            let ahead = n_ahead.get_mut(idx).present("a source of a mixture")?;
            let Some(sample) = stream.peek(*ahead)? else {
                break;
            };
            check_width(stream, &sample, self.max_positions)?;
            samples.push(sample);
            *ahead += 1;
            *n_totals.get_mut(idx).present("a source of a mixture")? += 1;
        }
        Ok(samples)
    }

    /// Where the loader stands.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            digest: self.digest.clone(),
            mean_width: self.mean_width,
            streams: self.streams.iter().map(SourceStream::cursor).collect(),
        }
    }

    /// Goes to the place of a cursor, tokenising at most a block of each source again.
    ///
    /// # Errors
    /// `Recipe` when it was taken from other data, `Data` when these have changed since.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if cursor.digest != self.digest || cursor.streams.len() != self.streams.len() {
            return Err(Error::Recipe(
                "resume: the place in the data is one in other data; use the same".into(),
            ));
        }
        if *cursor != self.cursor() {
            self.mean_width = cursor.mean_width;
            for (stream, place) in self.streams.iter_mut().zip(&cursor.streams) {
                stream.seek(*place)?;
            }
        }
        Ok(())
    }

    /// Digest of all that decides the windows: contents, weights, ranges, packing, tokenizer. Of
    /// files beyond 256 MiB the length and samples ([`minitron_core::digest::of_data_file`]).
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Mean tokens per window in the first block, special tokens included, rounded up; of a
    /// mixture, weighted. Streams have windows of one length; for packed documents this is the mean
    /// of all where they fit one block.
    pub fn mean_width(&self) -> usize {
        self.mean_width
    }

    /// Tokens of the longest window in the current blocks, special tokens included.
    pub fn width(&self) -> usize {
        self.streams
            .iter()
            .map(|stream| stream.block.windows.width())
            .max()
            .unwrap_or(0)
    }

    /// Special tokens per window.
    pub fn n_special_tokens(&self) -> usize {
        self.streams
            .first()
            .map_or(0, |stream| stream.block.windows.n_special_tokens())
    }

    /// Refuses windows that a model has no positions for: those at hand now, later ones when they
    /// come.
    ///
    /// # Errors
    /// `Recipe` naming the longest possible `seq_len`.
    pub fn check_fits(&mut self, options: &Options) -> Result<()> {
        self.max_positions = self.max_positions.min(options.max_positions);
        self.streams
            .iter()
            .try_for_each(|stream| stream.block.windows.check_fits(options))
    }
}

/// Refuses a window that a model has no positions for.
fn check_width(stream: &SourceStream, sample: &Sample, max_positions: usize) -> Result<()> {
    let n_special_tokens = stream.block.windows.n_special_tokens();
    fits(sample.tokens.len(), n_special_tokens, max_positions)
}
