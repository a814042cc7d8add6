//! Keys, counters and queues that ranks share.

use std::sync::mpsc;
use std::time::Duration;

use crate::error::{CommError, Result};
use crate::ffi::{Address, RawStore};

/// A client of the key-value store that ranks meet in: c10d's `TCPStore`, for small values.
///
/// A call on one client waits for another on it; a thread of its own needs a client of its own.
#[derive(Debug)]
pub struct Store(RawStore);

impl Store {
    /// Serves a store in this process, on `port` or, for 0, on a free one. Nobody is waited for.
    ///
    /// # Errors
    /// `Rendezvous` where the port is taken.
    pub fn serve(port: u16, timeout: Duration) -> Result<Self> {
        open("127.0.0.1", port, (true, None), timeout)
    }

    /// A client of a store that is served elsewhere.
    ///
    /// # Errors
    /// `Rendezvous` where nobody serves one in time.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        open(host, port, (false, None), timeout)
    }

    /// Meets `n_ranks` processes, of which the first serves; returns when all are there.
    ///
    /// # Errors
    /// `Rendezvous` where they are not in time.
    pub(crate) fn meet(
        host: &str,
        port: u16,
        (rank, n_ranks): (usize, usize),
        timeout: Duration,
    ) -> Result<Self> {
        open(host, port, (rank == 0, Some(n_ranks)), timeout)
    }

    /// The same store, keys preceded by `prefix`.
    ///
    /// # Errors
    /// `Unsupported` for a NUL.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self> {
        self.0.with_prefix(prefix).map(Store)
    }

    /// The port that it is served on.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// `PeerLost` where the server is gone; so of all below.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.0.set(key, value)
    }

    /// A key's value, once somebody has set it.
    ///
    /// # Errors
    /// `Timeout` where nobody does.
    pub fn read(&self, key: &str) -> Result<Vec<u8>> {
        self.0.read(key)
    }

    /// Whether a key is set.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn has(&self, key: &str) -> Result<bool> {
        self.0.has(key)
    }

    /// Adds to a counter, which begins at 0, and returns its value: no two see the same where `n`
    /// is above 0.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn count(&self, key: &str, n: i64) -> Result<i64> {
        self.0.count(key, n)
    }

    /// Puts a value at a queue's end.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn push(&self, queue: &str, value: &[u8]) -> Result<()> {
        self.0.push(queue, value)
    }

    /// How many values a queue holds.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn queue_len(&self, queue: &str) -> Result<usize> {
        self.0.queue_len(queue)
    }

    /// Takes the value at a queue's beginning; none of an empty one.
    ///
    /// # Errors
    /// As [`Store::set`].
    pub fn pop(&self, queue: &str) -> Result<Option<Vec<u8>>> {
        match self.0.pop(queue) {
            Ok(value) => Ok(Some(value)),
            Err(CommError::QueueEmpty) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn raw(&self) -> &RawStore {
        &self.0
    }
}

/// Beyond its own timeout, how long c10d is waited for.
const MARGIN: Duration = Duration::from_secs(2);

/// Opens a client, and the server where this is one. Who listens at the address and says nothing is
/// no store: c10d itself would wait for its first word for ever.
fn open(
    host: &str,
    port: u16,
    (is_server, n_ranks): (bool, Option<usize>),
    timeout: Duration,
) -> Result<Store> {
    let (sender, receiver) = mpsc::channel();
    let address = Address {
        host: host.to_owned(),
        port,
        is_server,
        n_ranks,
    };
    std::thread::spawn(move || sender.send(RawStore::tcp(&address, timeout)));
    let opened = receiver.recv_timeout(timeout.saturating_add(MARGIN));
    let silent = || CommError::Timeout("nobody answers there as a store does".to_owned());
    let store = opened.unwrap_or_else(|_| Err(silent()));
    store.map(Store).map_err(|error| {
        let text = match error {
            CommError::Timeout(text) | CommError::PeerLost(text) | CommError::Backend(text) => text,
            other => other.to_string(),
        };
        CommError::Rendezvous(format!(
            "at {host}:{port}: {text}; check that every rank was started, and that MASTER_ADDR and \
             MASTER_PORT are the same and reachable for all"
        ))
    })
}
