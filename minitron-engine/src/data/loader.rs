//! Training windows without end: read, tokenised and shuffled block by block while training goes
//! on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use super::block::{Block, Source, Start, send_blocks};
use super::documents::DataSources;
use super::identity;
use super::mixture::Mixture;
use super::spec::{DataSpec, Reading};
use super::text_options::Pack;
use super::tokenizer::Tokenizer;
use minitron_core::error::{Error, IoContext, Result};
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
        let sources = |specs: &[DataSpec]| DataSources::new(specs, self.reading, self.registry);
        if weights.is_empty() {
            return Ok((vec![sources(self.specs)?], vec![1.0]));
        }
        match self.specs.iter().find(|spec| spec.weight.is_none()) {
            None => Ok((
                self.specs.chunks(1).map(sources).collect::<Result<_>>()?,
                weights,
            )),
            Some(bare) => {
                let message = format!(
                    "data: `{bare}` has no weight, others do; give each one, as in 0.7*web.jsonl, \
                     or none"
                );
                Err(Error::Recipe(message))
            }
        }
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

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCursor {
    /// Where its block begins.
    pub start: Start,
    /// Windows taken of this block.
    pub n_taken: usize,
    /// Windows taken since the beginning of training, which the mixture goes by.
    pub n_total: u64,
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
        let mut workers = Vec::new();
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
            place.map_or(Ok(()), check_counts)?;
            workers.push((
                Worker::start(
                    &source,
                    place.map_or_else(Start::default, |place| place.start),
                )?,
                source,
                place,
            ));
        }
        // All of them are at work by now.
        let opened = workers
            .into_iter()
            .map(|(worker, source, place)| SourceStream::open(worker, source, place));
        let streams: Vec<SourceStream> = opened.collect::<Result<_>>()?;
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
        let block = Block::new(Start::default(), windows, true, seed, 0);
        let stream = SourceStream {
            idx: 0,
            seed,
            source: None,
            worker: None,
            block,
            n_taken: 0,
            n_total: 0,
        };
        DataLoader::of(vec![stream], Mixture::new(&[1.0]), digest, None)
    }

    fn of(
        streams: Vec<SourceStream>,
        mixture: Mixture,
        digest: String,
        mean_width: Option<usize>,
    ) -> Self {
        let mean = mixture
            .average(
                streams
                    .iter()
                    .map(|stream| stream.block.windows.mean_width() as f64),
            )
            .ceil() as usize;
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
        fits(
            sample.tokens.len(),
            stream.block.windows.n_special_tokens(),
            self.max_positions,
        )?;
        Ok(sample)
    }

    /// Where the loader stands.
    pub fn cursor(&self) -> Cursor {
        let of_lane = |stream: &SourceStream| SourceCursor {
            start: stream.block.start,
            n_taken: stream.n_taken,
            n_total: stream.n_total,
        };
        let streams = self.streams.iter().map(of_lane).collect();
        Cursor {
            digest: self.digest.clone(),
            mean_width: self.mean_width,
            streams,
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

    /// special tokens per window.
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

/// One source on its way.
#[derive(Debug)]
struct SourceStream {
    idx: usize,
    seed: u64,
    /// None for windows in memory.
    source: Option<Arc<Source>>,
    /// None where the block is the epoch.
    worker: Option<Worker>,
    block: Block,
    n_taken: usize,
    n_total: u64,
}

impl SourceStream {
    fn open(mut worker: Worker, source: Arc<Source>, place: Option<SourceCursor>) -> Result<Self> {
        let block = worker.next()?;
        let place = place.unwrap_or(SourceCursor {
            start: block.start,
            n_taken: 0,
            n_total: 0,
        });
        check(place, block.start, block.windows.len())?;
        // What needs no worker any more need not hold one.
        let worker = (!block.is_epoch).then_some(worker);
        let (idx, seed) = (source.idx, source.seed);
        Ok(SourceStream {
            idx,
            seed,
            source: Some(source),
            worker,
            block,
            n_taken: place.n_taken,
            n_total: place.n_total,
        })
    }

    fn next_piece(&mut self) -> Result<Sample> {
        if self.n_taken == self.block.order.len() {
            self.block = match &mut self.worker {
                Some(worker) => worker.next()?,
                None => self.epoch(self.block.start.epoch + 1),
            };
            self.n_taken = 0;
        }
        let window = self.block.order.get(self.n_taken).copied();
        let window = window
            .ok_or_else(|| Error::Internal(format!("a block without window {}", self.n_taken)))?;
        self.n_taken += 1;
        self.n_total += 1;
        let id = self.block.start.window + window as u64;
        self.block.windows.sample(window, id)
    }

    /// The block in the order of another epoch.
    fn epoch(&self, epoch: u64) -> Block {
        let start = Start {
            epoch,
            ..self.block.start
        };
        Block::new(start, self.block.windows.clone(), true, self.seed, self.idx)
    }

    fn seek(&mut self, place: SourceCursor) -> Result<()> {
        match &self.source {
            Some(source) if !self.block.is_epoch => {
                check_counts(place)?;
                // The old worker ends before the new one begins, so that there are never three
                // blocks.
                self.worker = None;
                *self = SourceStream::open(
                    Worker::start(source, place.start)?,
                    source.clone(),
                    Some(place),
                )?;
            }
            _ => {
                let start = Start {
                    epoch: place.start.epoch,
                    ..self.block.start
                };
                check(place, start, self.block.windows.len())?;
                self.block = self.epoch(place.start.epoch);
                self.n_taken = place.n_taken;
                self.n_total = place.n_total;
            }
        }
        Ok(())
    }
}

/// Refuses a place that is none in the block that begins at `start`.
fn check(place: SourceCursor, start: Start, n_windows: usize) -> Result<()> {
    check_counts(place)?;
    if place.start == start && place.n_taken <= n_windows {
        Ok(())
    } else {
        Err(nowhere())
    }
}

/// Counts that no training reaches are damage, and would overflow where a block is prepared.
fn check_counts(place: SourceCursor) -> Result<()> {
    let Start {
        epoch,
        block,
        window,
        place: item,
        n_carried,
    } = place.start;
    let counts = [
        epoch,
        block,
        window,
        item.item,
        item.document,
        n_carried as u64,
    ];
    if counts.iter().all(|&count| count < 1 << 48) && place.n_total < 1 << 56 {
        Ok(())
    } else {
        Err(nowhere())
    }
}

fn nowhere() -> Error {
    Error::Data(
        "the place of the checkpoint is nowhere in the training data; use the same data".into(),
    )
}

/// A thread that prepares blocks, one ahead of what was asked for.
#[derive(Debug)]
struct Worker {
    blocks: Option<Receiver<Result<Block>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(source: &Arc<Source>, start: Start) -> Result<Self> {
        // Without a place to put it down, a finished block is handed over in person: one is ahead,
        // not two.
        let (sender, blocks) = sync_channel(0);
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopped) = (source.clone(), stop.clone());
        let work = move || send_blocks(&source, start, &sender, &stopped);
        let thread = thread::Builder::new()
            .name("data".into())
            .spawn(work)
            .at_path("a thread to read data")?;
        Ok(Worker {
            blocks: Some(blocks),
            stop,
            thread: Some(thread),
        })
    }

    fn next(&mut self) -> Result<Block> {
        if let Some(received) = self.blocks.as_ref().and_then(|blocks| blocks.recv().ok()) {
            return received;
        }
        let panic = self.thread.take().and_then(|thread| thread.join().err());
        let said = panic.as_ref().and_then(|panic| {
            panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
        });
        let cause = said.map_or_else(String::new, |said| format!(": {said}"));
        Err(Error::Internal(format!(
            "the thread that reads data ended early{cause}"
        )))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Who waits to hand a block over hears that nobody comes.
        self.blocks = None;
        if let Some(thread) = self.thread.take() {
            // A panic there is told of where its block is missed.
            thread.join().unwrap_or_default();
        }
    }
}
