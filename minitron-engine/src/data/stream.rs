//! One source's windows in the order of training, and its place in them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::block::{Source, Start, TokenBlock};
use super::worker::Worker;
use minitron_core::error::{Error, Result};
use minitron_core::windows::Sample;

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

/// One source on its way.
#[derive(Debug)]
pub(super) struct SourceStream {
    idx: usize,
    seed: u64,
    /// None for windows in memory.
    source: Option<Arc<Source>>,
    /// None where the block is the epoch.
    worker: Option<Worker>,
    pub block: TokenBlock,
    n_taken: usize,
    pub n_total: u64,
}

/// A source whose first block is being prepared.
pub(super) struct StartingStream {
    worker: Worker,
    source: Arc<Source>,
    place: Option<SourceCursor>,
}

impl StartingStream {
    /// Sets the worker to work, from a place on where one is given.
    pub fn begin(source: Arc<Source>, place: Option<SourceCursor>) -> Result<Self> {
        place.map_or(Ok(()), check_counts)?;
        let start = place.map_or_else(Start::default, |place| place.start);
        let worker = Worker::start(&source, start)?;
        Ok(StartingStream {
            worker,
            source,
            place,
        })
    }

    /// Waits for the first block.
    pub fn open(mut self) -> Result<SourceStream> {
        let block = self.worker.next()?;
        let place = self.place.unwrap_or(SourceCursor {
            start: block.start,
            n_taken: 0,
            n_total: 0,
        });
        check(place, block.start, block.windows.len())?;
        Ok(SourceStream {
            idx: self.source.idx,
            seed: self.source.seed,
            source: Some(self.source),
            // What needs no worker any more need not hold one.
            worker: (!block.is_epoch).then_some(self.worker),
            block,
            n_taken: place.n_taken,
            n_total: place.n_total,
        })
    }
}

impl SourceStream {
    /// Windows in memory: one block, which is the epoch.
    pub fn of_block(block: TokenBlock, seed: u64) -> Self {
        SourceStream {
            idx: 0,
            seed,
            source: None,
            worker: None,
            block,
            n_taken: 0,
            n_total: 0,
        }
    }

    /// Where it stands.
    pub fn cursor(&self) -> SourceCursor {
        SourceCursor {
            start: self.block.start,
            n_taken: self.n_taken,
            n_total: self.n_total,
        }
    }

    /// The window that comes after so many others; none where this block ends before.
    pub fn peek(&self, n_ahead: usize) -> Result<Option<Sample>> {
        let place = self.n_taken.saturating_add(n_ahead);
        let window = self.block.order.get(place).copied();
        window.map(|window| self.sample(window)).transpose()
    }

    /// The next window.
    pub fn next_piece(&mut self) -> Result<Sample> {
        if self.n_taken == self.block.order.len() {
            self.block = match &mut self.worker {
                Some(worker) => worker.next()?,
                None => self.epoch(self.block.start.epoch + 1),
            };
            self.n_taken = 0;
        }
        let Some(&window) = self.block.order.get(self.n_taken) else {
            let message = format!("a block without window {}", self.n_taken);
            return Err(Error::Internal(message));
        };
        self.n_taken += 1;
        self.n_total += 1;
        self.sample(window)
    }

    fn sample(&self, window: usize) -> Result<Sample> {
        let id = self.block.start.window + window as u64;
        self.block.windows.sample(window, id)
    }

    /// The block in the order of another epoch.
    fn epoch(&self, epoch: u64) -> TokenBlock {
        let start = Start {
            epoch,
            ..self.block.start
        };
        TokenBlock::new(start, self.block.windows.clone(), true, self.seed, self.idx)
    }

    /// Goes to a place.
    pub fn seek(&mut self, place: SourceCursor) -> Result<()> {
        match &self.source {
            Some(source) if !self.block.is_epoch => {
                check_counts(place)?;
                // The old worker ends before the new one begins, so that there are never three
                // blocks.
                self.worker = None;
                *self = StartingStream::begin(source.clone(), Some(place))?.open()?;
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
