//! What Kafka clients may take of memory together: each has its part from when it is opened until it has left.
//!
//! Owns: the parts, which together are no more than the node's share, however many subscriptions there are, but for the little that each
//! has at least. Does not own: what a client does with its part (`librdkafka`), or its session (`session`).

use std::sync::{Arc, Mutex, PoisonError};

/// The least and the most that one client gets.
pub(crate) const CLIENT_BYTES_MIN: u64 = 256 << 10;
const CLIENT_BYTES_MAX: u64 = 24 << 20;

/// The bytes that all Kafka clients share, and that no client has taken. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ClientMemory(Arc<Mutex<u64>>);

/// The part of one client; given back when dropped.
#[derive(Debug)]
pub(crate) struct ClientPart {
    memory: ClientMemory,
    taken: u64,
}

impl ClientMemory {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// Half of what is free: the first ones have more, and there is always some left for the next.
    pub(crate) fn take(&self) -> ClientPart {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = (*free / 2).clamp(CLIENT_BYTES_MIN, CLIENT_BYTES_MAX).min(*free);
        *free -= taken;
        ClientPart { memory: self.clone(), taken }
    }
}

impl ClientPart {
    fn bytes(&self) -> usize {
        usize::try_from(self.taken.max(CLIENT_BYTES_MIN)).unwrap_or(usize::MAX)
    }

    /// For what the client has fetched, and for one answer of a broker that is on its way to it.
    pub(crate) fn client_bytes(&self) -> usize {
        self.bytes() / 4 * 3
    }

    /// For what a session has taken from its client.
    pub(crate) fn queue_bytes(&self) -> usize {
        self.bytes() / 4
    }
}

impl Drop for ClientPart {
    fn drop(&mut self) {
        *self.memory.0.lock().unwrap_or_else(PoisonError::into_inner) += self.taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of a hundred subscriptions had as much as one.
    #[test]
    fn a_hundred_clients_have_no_more_than_the_share_and_the_least_of_each() {
        const SHARE: u64 = 16 << 20;
        let memory = ClientMemory::new(SHARE);
        let parts: Vec<ClientPart> = (0..100).map(|_| memory.take()).collect();
        assert_eq!(parts[0].bytes() as u64, SHARE / 2);
        assert!(parts.iter().map(|part| part.taken).sum::<u64>() <= SHARE);
        let bytes: usize = parts.iter().map(ClientPart::bytes).sum();
        assert!(bytes as u64 <= SHARE + 100 * CLIENT_BYTES_MIN, "{bytes}");
        drop(parts);
        assert_eq!(memory.take().bytes() as u64, SHARE / 2, "they have given it back");
    }
}
