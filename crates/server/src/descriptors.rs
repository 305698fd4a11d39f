//! File descriptors: the process takes as many as it may have, and gives each use its share.
//!
//! Owns: the shares. What is not dealt out here is for tables and log, for connections to handlers and brokers, and for files that are open for a
//! moment. Does not own: what a room does when there is none left.

#![allow(clippy::disallowed_methods, reason = "a limit of the process: a simulated node has none")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections of clients at a time, where descriptors and memory allow.
const CLIENTS_MAX: u64 = 10_000;
const OPERATORS_MAX: u64 = 256;
const OPERATORS_MIN: u64 = 8;
/// Shares of the limit.
const CLIENTS_SHARE: u64 = 2;
const OPERATORS_SHARE: u64 = 16;
/// What a connection takes of memory while nothing is in progress on it, and the share of the memory setting for all of them.
const CONNECTION_BYTES: u64 = 16 << 10;
const CONNECTIONS_MEMORY_SHARE: u64 = 2;
/// Below this the node cannot do all that it has to at the same time.
const LIMIT_LOW: u64 = 128;

/// How many descriptors there are, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    limit: u64,
}

impl Descriptors {
    /// Raises the limit of the process as far as it may be raised without rights.
    pub(crate) fn raised() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        {
            tracing::warn!(%error, current, maximum, "cannot raise the limit on file descriptors; connections are bounded by what there is");
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if limit < LIMIT_LOW {
            tracing::warn!(limit, "the limit on file descriptors is low: raise it with `ulimit -n` to {LIMIT_LOW} at least");
        }
        Self { limit }
    }

    /// Connections of clients at a time, on a node with this memory setting.
    pub(crate) fn clients(self, memory_bytes: u64) -> usize {
        let in_memory = memory_bytes / CONNECTIONS_MEMORY_SHARE / CONNECTION_BYTES;
        whole((self.limit / CLIENTS_SHARE).min(in_memory).clamp(1, CLIENTS_MAX))
    }

    /// Connections of operators at a time.
    pub(crate) fn operators(self) -> usize {
        whole((self.limit / OPERATORS_SHARE).clamp(OPERATORS_MIN, OPERATORS_MAX))
    }
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_a_reserve() {
        const MEMORY: u64 = 256 << 20;
        for limit in [256, 1_024, 4_096] {
            let descriptors = Descriptors { limit };
            let dealt = descriptors.clients(MEMORY) + descriptors.operators();
            assert!(dealt as u64 <= limit * 5 / 8, "{limit}: {dealt}");
        }
        let plenty = Descriptors { limit: u64::MAX };
        assert_eq!((plenty.clients(1 << 30), plenty.operators()), (10_000, 256));
        assert_eq!(plenty.clients(16 << 20), 512, "memory bounds them, too");
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let raised = Descriptors::raised();
        assert_eq!(Some(raised.limit), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }
}
