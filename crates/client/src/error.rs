//! What can go wrong, told apart by what the caller can do about it.

use std::time::Duration;

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used as it is: fix it.
    #[error("`{address}` is no usable address: {reason}")]
    Address { address: String, reason: String },
    /// No connection, or it broke before the answer was complete, as it does when the server stops before a result. The request may have
    /// been carried out, or still run; with an idempotency key it is safe to retry.
    #[error("cannot talk to {url}: {reason}")]
    Connection { url: String, reason: String },
    /// No complete answer in time; as for a broken connection.
    #[error("no answer from {url} within {limit:?}")]
    Timeout { url: String, limit: Duration },
    /// The server or, if `source` says so, the handler refused: the message says what to change.
    #[error("{message} (status {status})")]
    Refused {
        /// The HTTP status. A handler's terminal error chooses it, so with `Source::Invocation` it may be any.
        status: u16,
        source_of_refusal: Source,
        /// The stable code of an admin error, such as `META0003`; empty if it has none.
        code: String,
        message: String,
    },
    /// The answer does not have the documented shape: not this server, or another version of it.
    #[error("unexpected answer from {url}: {reason}")]
    Unexpected { url: String, reason: String },
}

/// Who refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The server: it did not take this request. What it had taken before under the same idempotency key goes on.
    Server,
    /// The invocation: it ran, and ended with this failure.
    Invocation,
}

impl Error {
    /// The HTTP status, if there was an answer that refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the handler itself failed for good, so that the same request again would fail again.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Refused { source_of_refusal: Source::Invocation, .. })
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Timeout { .. } => true,
            Self::Refused { source_of_refusal: Source::Server, status, .. } => matches!(status, 429 | 503),
            _ => false,
        }
    }
}
