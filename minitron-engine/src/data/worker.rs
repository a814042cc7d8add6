//! Blocks prepared beside training.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use super::block::{Source, Start, TokenBlock};
use super::epoch::send_blocks;
use minitron_core::error::{Error, IoContext, Result};

/// A thread that prepares blocks, one ahead of what was asked for.
#[derive(Debug)]
pub(super) struct Worker {
    blocks: Option<Receiver<Result<TokenBlock>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Begins with the block at a place.
    pub fn start(source: &Arc<Source>, start: Start) -> Result<Self> {
        // Without a place to put it down, a finished block is handed over in person: one is ahead,
        // not two.
        let (sender, blocks) = sync_channel(0);
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopped) = (source.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("data".into())
            .spawn(move || send_blocks(&source, start, &sender, &stopped))
            .at_path("a thread to read data")?;
        Ok(Worker {
            blocks: Some(blocks),
            stop,
            thread: Some(thread),
        })
    }

    /// Waits for the next block.
    pub fn next(&mut self) -> Result<TokenBlock> {
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
