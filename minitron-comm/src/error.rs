//! What went wrong, between ranks.

/// An error between ranks, by kind. All but `QueueEmpty` end a group: c10d uses none again after
/// one of its collectives has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// A rank is there and silent, or a link is down.
    #[error("{0}; a rank is stuck, or its machine cannot be reached")]
    Timeout(String),
    /// A rank has ended.
    #[error("{0}; a rank is gone, and its own output says why")]
    PeerLost(String),
    /// The ranks did not find each other.
    #[error("the ranks did not meet: {0}")]
    Rendezvous(String),
    /// Ranks that are not doing the same.
    #[error("the ranks disagree: {0}")]
    Mismatch(String),
    /// What no collective takes.
    #[error("{0}")]
    Unsupported(String),
    /// Nothing waits in a queue.
    #[error("the queue is empty")]
    QueueEmpty,
    /// All else that c10d says.
    #[error("c10d: {0}")]
    Backend(String),
}

/// What a collective gives.
pub type Result<T> = std::result::Result<T, CommError>;

impl From<tch::TchError> for CommError {
    fn from(error: tch::TchError) -> Self {
        CommError::Backend(error.to_string())
    }
}

impl CommError {
    /// From what Gloo says, which tells kinds apart by text alone.
    pub(crate) fn of_backend(text: &str) -> Self {
        let says = |words: &str| text.contains(words);
        let line = text.trim().lines().next().unwrap_or_default().to_owned();
        let is_gone = [
            "Connection closed",
            "Connection reset",
            "Broken pipe",
            "Connection refused",
            "Failed to recv",
        ];
        // The last of what passes between two ranks, once the other call of the pair waited too
        // long.
        let is_late = [
            "Timed out",
            "timed out",
            "failed to pass monitoredBarrier",
            "Application timeout",
        ];
        if is_late.into_iter().any(says) {
            CommError::Timeout(line)
        } else if is_gone.into_iter().any(says) {
            CommError::PeerLost(line)
        } else if says("Detected mismatch") || says("running collective") {
            CommError::Mismatch(text.trim().to_owned())
        } else {
            CommError::Backend(line)
        }
    }

    /// The same with more to say.
    #[must_use]
    pub(crate) fn with(self, more: &str) -> Self {
        match self {
            CommError::Timeout(text) => CommError::Timeout(format!("{text}; {more}")),
            CommError::PeerLost(text) => CommError::PeerLost(format!("{text}; {more}")),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gloo_says_has_a_kind() {
        let of = CommError::of_backend;
        let closed = "[../gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:2\n#0 0x1";
        assert!(matches!(of(closed), CommError::PeerLost(text) if !text.contains('\n')));
        let timed = "[unbound_buffer.cc:84] Timed out waiting 5000ms for recv operation";
        assert!(matches!(of(timed), CommError::Timeout(_)));
        let paired = "[../gloo/transport/tcp/pair.cc:590] Application timeout caused pair closure";
        assert!(matches!(of(paired), CommError::Timeout(_)));
        let late = "Ranks 2 failed to pass monitoredBarrier in 2000 ms";
        assert!(matches!(of(late), CommError::Timeout(text) if text.contains("Ranks 2")));
        assert!(matches!(of("anything else"), CommError::Backend(_)));
    }
}
