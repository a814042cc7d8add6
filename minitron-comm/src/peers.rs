//! Which ranks show signs of life: what a broken collective says of a rank is its address.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::error::{CommError, Result};
use crate::store::Store;

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// Who gives no sign for so long is lost.
const SILENCE: Duration = Duration::from_millis(2500);

/// How long the store is asked, which itself may be out of reach and silent.
const PATIENCE: Duration = Duration::from_secs(6);

/// Tells others that this rank lives, and knows how to ask who else does.
#[derive(Debug)]
pub(crate) struct Peers {
    asking: Arc<Asking>,
    /// Whether rank 0 serves the store.
    is_served_by_first: bool,
    is_ended: Arc<AtomicBool>,
    beating: Option<JoinHandle<()>>,
}

/// Who asks, over a client of its own.
#[derive(Debug)]
struct Asking {
    rank: usize,
    n_ranks: usize,
    store: Mutex<Store>,
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        // Not waited for: it may wait for a store that is out of reach.
        if let Some(beating) = self.beating.take() {
            beating.thread().unpark();
        }
    }
}

impl Peers {
    /// With two clients of its own: one beats while the other asks.
    pub fn new(
        [beats, asks]: [Store; 2],
        (rank, n_ranks): (usize, usize),
        is_served_by_first: bool,
    ) -> Self {
        let is_ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_ended);
        let beating = std::thread::Builder::new()
            .name("signs-of-life".to_owned())
            .spawn(move || {
                while !until.load(Ordering::Relaxed) && beats.count(&beat(rank), 1).is_ok() {
                    std::thread::park_timeout(BEAT);
                }
            });
        let asking = Asking {
            rank,
            n_ranks,
            store: Mutex::new(asks),
        };
        Peers {
            asking: Arc::new(asking),
            is_served_by_first,
            is_ended,
            beating: beating.ok(),
        }
    }

    /// The error with the ranks that show no sign of life; takes seconds.
    pub fn named(&self, error: CommError) -> CommError {
        if !matches!(error, CommError::Timeout(_) | CommError::PeerLost(_)) {
            return error;
        }
        match self.in_time(Asking::named_lost) {
            Ok(ranks) if ranks.is_empty() => error.with("every rank shows signs of life"),
            Ok(ranks) => error.with(&format!("no sign of life from rank {ranks}")),
            Err(_) if self.is_served_by_first => {
                error.with("rank 0, which serves the store, does not answer")
            }
            Err(_) => error.with("the launcher's store does not answer"),
        }
    }

    /// Ranks that give no sign of life; looks for as long as a living one may be silent.
    ///
    /// # Errors
    /// `Timeout` where the store does not answer.
    pub fn lost(&self) -> Result<Vec<usize>> {
        self.in_time(Asking::lost)
    }

    /// What the store says, if it does so in time.
    fn in_time<T: Send + 'static>(&self, ask: fn(&Asking) -> Result<T>) -> Result<T> {
        let (sender, receiver) = mpsc::channel();
        let asking = Arc::clone(&self.asking);
        std::thread::spawn(move || sender.send(ask(&asking)));
        let said = receiver.recv_timeout(PATIENCE);
        said.unwrap_or_else(|_| Err(CommError::Timeout("the store does not answer".to_owned())))
    }
}

impl Asking {
    /// The silent ones by name. Who finds them first says so: it will be silent itself soon.
    fn named_lost(&self) -> Result<String> {
        const FOUND: &str = "lost";
        if let Ok(store) = self.store.lock()
            && store.has(FOUND)?
        {
            return Ok(String::from_utf8_lossy(&store.read(FOUND)?).into_owned());
        }
        let silent = self.lost()?;
        let names: Vec<String> = silent.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        if let Ok(store) = self.store.lock()
            && !names.is_empty()
        {
            store.set(FOUND, names.as_bytes())?;
        }
        Ok(names)
    }

    fn lost(&self) -> Result<Vec<usize>> {
        let Ok(store) = self.store.lock() else {
            return Ok(Vec::new());
        };
        let mut silent = Vec::new();
        for rank in (0..self.n_ranks).filter(|rank| *rank != self.rank) {
            silent.push((rank, store.count(&beat(rank), 0)?));
        }
        let begin = Instant::now();
        while begin.elapsed() < SILENCE && !silent.is_empty() {
            sleep(BEAT);
            let mut still = Vec::with_capacity(silent.len());
            for (rank, before) in silent {
                if store.count(&beat(rank), 0)? == before {
                    still.push((rank, before));
                }
            }
            silent = still;
        }
        Ok(silent.into_iter().map(|(rank, _)| rank).collect())
    }
}

/// The key of a rank's signs of life.
pub(crate) fn beat(rank: usize) -> String {
    format!("beat/{rank}")
}
