//! Kafka records on their way in.

use crate::{StreamId, Text, Timestamp, encoding};
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// Where a submitted invocation came from, for deduplication (rules K1 and K2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SourceRecord {
    #[n(0)]
    pub stream: StreamId,
    #[n(1)]
    pub offset: i64,
}

/// A Kafka record that could not become an invocation, kept where it can be seen (rule K6).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ParkedRecord {
    #[n(0)]
    pub source: SourceRecord,
    #[n(1)]
    pub topic: Text,
    /// The Kafka record's own time, where it has one.
    #[n(2)]
    pub timestamp: Option<Timestamp>,
    /// The whole key, or a prefix of one that is too large.
    #[cbor(n(3), with = "encoding::bytes")]
    pub key: Bytes,
    #[n(4)]
    pub has_key: bool,
    /// The whole value, or a prefix of one that is too large.
    #[cbor(n(5), with = "encoding::bytes")]
    pub value: Bytes,
    /// Bytes of the whole Kafka record: key, value and headers.
    #[n(6)]
    pub bytes: u64,
    /// SHA-256 of the whole value.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub value_hash: [u8; 32],
    #[n(8)]
    pub headers: Vec<(Text, Text)>,
    /// Why it was parked, in words that say what to do.
    #[n(9)]
    pub reason: String,
}

impl ParkedRecord {
    /// Bytes that are kept of the Kafka record: of a large one less than it has.
    pub fn kept_bytes(&self) -> u64 {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        (self.key.len() + self.value.len() + headers) as u64
    }
}
